"""What the store knows of each event day: what it was built from, its counts, its verdict.

A step does its day and every earlier day that is stale: whose inputs are no longer those it was built from.
"""

from datetime import date

import polars as pl

from pipeline.dates import ONE_DAY
from pipeline.errors import OvertakenError
from pipeline.ids import content_digest
from pipeline.publish import Store
from pipeline.settings import Sessions
from pipeline.tables import DAYS, Table


def read_days(store: Store) -> pl.DataFrame:
    """All known days, oldest first."""
    return store.scan(DAYS).collect().sort("event_date")


def update_days(store: Store, changes: pl.DataFrame, base: int | None = None) -> int:
    """Set the columns of `changes` (one row an `event_date`) and keep the others; return the version made.

    With a `base` version, a day that was changed since then is a RetryableError: the changes rest on what it was.
    """
    version = (store.newest_version(DAYS) or 0) if base is None else base
    dates = changes["event_date"].to_list()
    if not dates:
        return version
    known = store.scan(DAYS, version).filter(pl.col("event_date").is_in(dates)).collect()
    kept = known.drop([name for name in changes.columns if name != "event_date"])
    rows = pl.concat([DAYS.empty(), changes.join(kept, on="event_date", how="left")], how="diagonal_relaxed")
    try:
        return store.replace(DAYS, rows, {"event_date": dates}, base=version)
    except OvertakenError:
        if base is not None:
            raise
        return update_days(store, changes)  # a neighbour set other columns: keep those as they are now


def digest_events(store: Store, events: Table, days: list[date]) -> pl.DataFrame:
    """What the events of each day are: event_date, events_content; a day at a time, which bounds memory."""
    found = [
        store.scan(events)
        .filter(pl.col("event_date") == day)
        .group_by("event_date")
        .agg(events_content=content_digest(pl.col("event_id")))
        .collect()
        for day in days
    ]
    return pl.concat([pl.DataFrame(schema={"event_date": pl.Date, "events_content": pl.String}), *found])


def with_inputs(days: pl.DataFrame, rules: Sessions) -> pl.DataFrame:
    """Each day with `inputs`, all that its sessions depend on.

    That is the rules, the sessions open at the end of the day before, and the events of the day and of the day after.
    """
    joined = days
    for name, column, offset in (("before", "open_content", 1), ("after", "events_content", -1)):
        moved = days.select(pl.col("event_date") + offset * ONE_DAY, pl.col(column).alias(name))
        joined = joined.join(moved, on="event_date", how="left")
    parts = [pl.col(name).fill_null("none") for name in ("before", "events_content", "after")]
    return joined.with_columns(inputs=pl.concat_str(pl.lit(rules.model_dump_json()), *parts, separator="|"))


def stale_sessions(store: Store, rules: Sessions) -> list[date]:
    """Days whose sessions were not built from what they depend on now."""
    days = with_inputs(read_days(store), rules)
    is_stale = pl.col("sessions_built_from").ne_missing(pl.col("inputs"))
    is_whole = pl.col("events_content").is_not_null()  # an ingest that died leaves none; it must be run again first
    return days.filter(is_whole & is_stale)["event_date"].to_list()


def present_content() -> pl.Expr:
    """What a verdict is about: the events and the sessions of a day."""
    return pl.concat_str(["events_content", "sessions_content"], separator="/")


def stale_verdicts(store: Store, day: date) -> list[date]:
    """Days up to `day` whose verdict is missing or about an earlier content, and later ones that were judged already.

    The sessions of an earlier day may change those of the next one, whose own night may be through with its data.
    """
    is_stale = pl.col("validated_content").is_null() | (pl.col("validated_content") != present_content())
    has_sessions = pl.col("sessions_content").is_not_null()
    is_ours = (pl.col("event_date") <= day) | pl.col("verdict").is_not_null()
    return read_days(store).filter(is_ours & has_sessions & is_stale)["event_date"].to_list()


def passed_days(store: Store, first: date, last: date) -> list[date]:
    """Days that passed validation at their present content: the only ones a model or an export may see."""
    is_passed = (pl.col("verdict") == "passed") & (pl.col("validated_content") == present_content())
    return read_days(store).filter(pl.col("event_date").is_between(first, last) & is_passed)["event_date"].to_list()
