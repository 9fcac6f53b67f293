"""The tables of the store: one row per what, which columns, how they are partitioned.

Columns are Int64, Float64, String, Boolean, Date and UTC microseconds only (or lists of them): what Delta
writes, every reader of Delta gives back unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
from polars.datatypes import DataType, DataTypeClass

UTC_MICROSECONDS = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Table:
    """A declared table: its name, what one row is, its columns and its partition columns."""

    name: str
    grain: str
    columns: Mapping[str, DataType | DataTypeClass]
    partition_by: tuple[str, ...]
    sort_by: tuple[str, ...] = ()

    def empty(self) -> pl.DataFrame:
        """No rows, all columns."""
        return pl.DataFrame(schema=dict(self.columns))


SITE = Table(
    "site",
    "one row: whose store this is",
    {"name": pl.String, "buckets": pl.Int64, "user_id_secret": pl.String, "marks_anonymous": pl.Boolean},
    (),
)

OUTCOME_KEY = Table(
    "outcome_key",
    "one row: the secret under which the outcomes in MLflow name visitors",
    {"key": pl.String},
    (),
)

FORGOTTEN = Table(
    "forgotten",
    "one row per visitor who is to be forgotten: a hash, never the id",
    {"user": pl.String, "requested_at": UTC_MICROSECONDS, "open_days": pl.List(pl.Date)},
    (),
    ("user",),
)

FILES = Table(
    "files",
    "one row per raw file and day it holds",
    {
        "delivery_date": pl.Date,
        "path": pl.String,
        "size": pl.Int64,
        "sha256": pl.String,
        "judged_by": pl.String,
        "columns": pl.String,
        "event_date": pl.Date,
        "rows_read": pl.Int64,
        "events": pl.Int64,
        "duplicates": pl.Int64,
        "rejected": pl.Int64,
    },
    ("delivery_date",),
    ("path", "event_date"),
)

DAYS = Table(
    "days",
    "one row per event day: what it was built from, its counts, its verdict",
    {
        "event_date": pl.Date,
        "events_content": pl.String,
        "num_events": pl.Int64,
        "num_duplicates": pl.Int64,
        "num_rejected": pl.Int64,
        "sessions_built_from": pl.String,
        "sessions_content": pl.String,
        "open_content": pl.String,
        "num_sessions": pl.Int64,
        "num_tied": pl.Int64,
        "num_repeats": pl.Int64,
        "validated_content": pl.String,
        "verdict": pl.String,
        "num_warnings": pl.Int64,
    },
    ("event_date",),
)

REJECTED = Table(
    "rejected",
    "one row per raw row that did not become an event",
    {
        "event_date": pl.Date,
        "reason": pl.String,
        "detail": pl.String,
        "source_file": pl.String,
        "record": pl.Int64,
        "fields": pl.String,
        "ingested_run": pl.String,
    },
    ("event_date",),
    ("source_file", "record"),
)

ITEMS = Table(
    "items",
    "one row per item and day on which the catalogue changed",
    {
        "snapshot_date": pl.Date,
        "item_id": pl.String,
        "title": pl.String,
        "category": pl.String,
        "price": pl.Float64,
        "available": pl.Boolean,
        "first_seen": pl.Date,
    },
    ("snapshot_date",),
    ("item_id",),
)


OPEN_SESSIONS = Table(
    "open_sessions",
    "one row per session that may go on after the midnight that ends its day: all that the next day must know of it",
    {
        "session_date": pl.Date,
        "user_bucket": pl.Int64,
        "visitor": pl.String,
        "given_session_id": pl.String,
        "started_at": UTC_MICROSECONDS,
        "last_event_at": UTC_MICROSECONDS,
        "num_events": pl.Int64,
        "item_id": pl.String,
        "event_type": pl.String,
    },
    ("session_date", "user_bucket"),
)


def events_table(context: list[str]) -> Table:
    """One row per accepted user action, with the site's context columns as text."""
    return Table(
        "events",
        "one row per accepted user action",
        {
            "event_date": pl.Date,
            "user_bucket": pl.Int64,
            "event_id": pl.String,
            "visitor": pl.String,
            "user_id": pl.String,
            "item_id": pl.String,
            "event_type": pl.String,
            "occurred_at": UTC_MICROSECONDS,
            "given_session_id": pl.String,
            **dict.fromkeys(context, pl.String),
            "source_file": pl.String,
            "ingested_run": pl.String,
        },
        ("event_date", "user_bucket"),
        ("occurred_at",),
    )


def sessions_table(context: list[str]) -> Table:
    """One row per session, its events as lists in time order."""
    return Table(
        "sessions",
        "one row per session",
        {
            "session_date": pl.Date,
            "user_bucket": pl.Int64,
            "session_id": pl.String,
            "visitor": pl.String,
            "user_id": pl.String,
            "started_at": UTC_MICROSECONDS,
            "ended_at": UTC_MICROSECONDS,
            "num_events": pl.Int64,
            "item_ids": pl.List(pl.String),
            "event_types": pl.List(pl.String),
            "offsets_seconds": pl.List(pl.Float64),
            **{name: pl.List(pl.String) for name in context},
        },
        ("session_date", "user_bucket"),
    )
