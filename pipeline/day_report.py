"""The event days of a store for people: what each holds, how it was judged, and which step must run again."""

from datetime import date

import polars as pl

from pipeline.days import passed_days, read_days, stale_sessions, stale_verdicts
from pipeline.publish import Store
from pipeline.settings import Sessions
from pipeline.tables import FILES


def day_report(store: Store, rules: Sessions, first: date = date.min, last: date = date.max) -> pl.DataFrame:
    """One row a day from `first` to `last`: event_date, files, events, duplicates, rejected, sessions, verdict, state.

    `state` says in words that the day feeds models, or what has to be done before it does.
    """
    num_files = store.scan(FILES).group_by("event_date").agg(files=pl.col("path").n_unique().cast(pl.Int64)).collect()
    days = (
        read_days(store)
        .filter(pl.col("event_date").is_between(first, last))
        .join(num_files, on="event_date", how="left")
    )
    return days.with_columns(state=state(store, rules)).select(
        "event_date",
        pl.col("files").fill_null(0),
        events="num_events",
        duplicates="num_duplicates",
        rejected="num_rejected",
        sessions="num_sessions",
        verdict="verdict",
        state="state",
    )


def state(store: Store, rules: Sessions) -> pl.Expr:
    """What a day is good for now; the first that holds."""
    day = pl.col("event_date")
    return (
        pl.when(pl.col("events_content").is_null())
        .then(pl.lit("in change: run ingest or forget again, if none is running"))
        .when(day.is_in(stale_sessions(store, rules)))
        .then(pl.lit("stale: run sessionize, validate"))
        .when(day.is_in(stale_verdicts(store, date.max)) | pl.col("verdict").is_null())
        .then(pl.lit("stale: run validate"))
        .when(day.is_in(passed_days(store, date.min, date.max)))
        .then(pl.lit("passed as it is now"))
        .otherwise(pl.lit("failed as it is now: feeds nothing"))
    )
