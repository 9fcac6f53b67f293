"""The tables of the features step; one partition a night."""

import polars as pl

from pipeline.tables import UTC_MICROSECONDS, Table

VOCABULARY = Table(
    "vocabulary",
    "one row per item that the night's models know",
    {"night": pl.Date, "item_code": pl.Int64, "item_id": pl.String, "num_events": pl.Int64},
    ("night",),
    ("item_code",),
)

SEQUENCES = Table(
    "sequences",
    "one row per session with a known item, as item codes in time order",
    {
        "night": pl.Date,
        "session_id": pl.String,
        "visitor": pl.String,
        "started_at": UTC_MICROSECONDS,
        "item_codes": pl.List(pl.Int64),
        "offsets_seconds": pl.List(pl.Float64),
    },
    ("night",),
    ("started_at", "session_id"),
)
