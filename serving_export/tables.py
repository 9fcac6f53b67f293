"""The exported tables. One release is one commit; its metadata says which model and data it was made from."""

import polars as pl

from pipeline.tables import UTC_MICROSECONDS, Table

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

RELATED_ITEMS = Table(
    "related_items",
    "one row per item and rank",
    {
        "item_id": pl.String,
        "rank": pl.Int64,
        "related_item_id": pl.String,
        "score": pl.Float64,
        "source": pl.String,
    },
    (),
    ("item_id", "rank"),
)

POPULAR_ITEMS = Table(
    "popular_items",
    "one row per channel, segment and rank",
    {"channel": pl.String, "segment": pl.String, "rank": pl.Int64, "item_id": pl.String, "score": pl.Float64},
    (),
    ("channel", "segment", "rank"),
)

TRIGGERS = Table(
    "triggers",
    "one row per user, trigger and item",
    {
        "user_bucket": pl.Int64,
        "user_id": pl.String,
        "trigger": pl.String,
        "rank": pl.Int64,
        "item_id": pl.String,
        "occurred_at": UTC_MICROSECONDS,
        "num_events": pl.Int64,
    },
    ("user_bucket",),
    ("user_id", "trigger", "rank"),
)

SESSION_INTENTS = Table(
    "session_intents",
    "one row per user, intent and rank: how probable a class of the next event is",
    {
        "user_bucket": pl.Int64,
        "user_id": pl.String,
        "intent": pl.String,
        "rank": pl.Int64,
        "label": pl.String,
        "probability": pl.Float64,
        "session_id": pl.String,
    },
    ("user_bucket",),
    ("user_id", "intent", "rank"),
)

LIST_CHECKS = Table(
    "list_checks",
    "one row per day, channel and rule that its lists were held to before they were published",
    {
        "data_through": pl.Date,
        "channel": pl.String,
        "rule": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "held": pl.Boolean,
    },
    ("data_through",),
    ("channel", "rule"),
)

USER_STATES = Table(
    "user_states",
    "one row per user: what the served model carries of them after their last session",
    {
        "user_bucket": pl.Int64,
        "visitor": pl.String,
        "model_version": pl.Int64,
        "last_session_id": pl.String,
        "last_started_at": UTC_MICROSECONDS,
        "num_sessions": pl.Int64,
        "history": pl.String,
        "carry": pl.List(pl.Float64),
        "checksum": pl.String,
    },
    ("user_bucket",),
    ("visitor",),
)

DRIFT = Table(
    "drift",
    "one row per day, measure and part: how unlike the days before it a day was",
    {
        "event_date": pl.Date,
        "measure": pl.String,
        "part": pl.String,
        "value": pl.Float64,
        "usual": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "held": pl.Boolean,
        "compared_with": pl.String,
        "note": pl.String,
    },
    ("event_date",),
    ("measure", "part"),
)
