"""The exported tables. One release is one commit; its metadata says which model and data it was made from."""

import polars as pl

from pipeline.tables import Table

RECOMMENDATIONS = Table(
    "recommendations",
    "one row per user, channel and rank",
    {
        "user_bucket": pl.Int64,
        "user_id": pl.String,
        "channel": pl.String,
        "rank": pl.Int64,
        "item_id": pl.String,
        "score": pl.Float64,
        "source": pl.String,
        "because": pl.String,
        "session_id": pl.String,
    },
    ("user_bucket",),
    ("user_id", "channel", "rank"),
)

POPULAR_ITEMS = Table(
    "popular_items",
    "one row per segment and rank",
    {"segment": pl.String, "rank": pl.Int64, "item_id": pl.String, "score": pl.Float64},
    (),
    ("segment", "rank"),
)
