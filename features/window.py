"""Which sessions a model of a night may see: passed days only, nothing after the window's end."""

import hashlib
from datetime import date

import polars as pl

from features.settings import FeaturesSite
from pipeline.dates import ONE_DAY
from pipeline.days import passed_days, read_days
from pipeline.errors import ConfigurationError, ContractError, RetryableError
from pipeline.publish import Store
from pipeline.sessions import trim_sessions
from pipeline.tables import sessions_table

INPUT_COLUMNS = ("session_id", "visitor", "started_at", "item_ids", "event_types", "offsets_seconds")
"""What of `sessions` is read as input, beside the context columns."""


def window_days(site: FeaturesSite, store: Store, last: date) -> list[date]:
    """The passed days of the window that ends with `last`; raises ConfigurationError if there are too few."""
    length = site.window.length // ONE_DAY
    first = last - (length - 1) * ONE_DAY
    days = passed_days(store, first, last)
    if len(days) < site.window.min_days:
        raise ConfigurationError(
            f"{site.name}: {len(days)} validated days from {first} to {last}, window.min_days asks for "
            f"{site.window.min_days}. Run `nightjar run --site … --from {first} --to {last}` "
            "or ingest, sessionize and validate for those days"
        )
    return days


def sessions_until(site: FeaturesSite, store: Store, days: list[date], last: date) -> pl.DataFrame:
    """Sessions of the given days, without what happened after the end of `last`."""
    sessions = store.scan(sessions_table(site.source.context)).filter(pl.col("session_date").is_in(days))
    return trim_sessions(sessions, last, site).collect()


def held_out_sessions(site: FeaturesSite, store: Store, day: date) -> pl.DataFrame:
    """Sessions that start on `day`; raises ContractError unless the day passed validation."""
    check_passed(site, store, day)
    return sessions_until(site, store, [day], day)


def earlier_sessions(site: FeaturesSite, store: Store, sessions: pl.DataFrame, day: date, most: int) -> pl.DataFrame:
    """What the visitors of some sessions of `day` did in the window before it: each one's newest `most` sessions.

    Trimmed at the end of the day before; of passed days only.
    """
    last = day - ONE_DAY
    days = passed_days(store, day - (site.window.length // ONE_DAY) * ONE_DAY, last)
    visitors = sessions.lazy().select("visitor").unique()
    scanned = store.scan(sessions_table(site.source.context)).filter(pl.col("session_date").is_in(days))
    theirs = trim_sessions(scanned.join(visitors, on="visitor", how="semi"), last, site).select(
        *INPUT_COLUMNS, *site.source.context
    )
    newest_first = pl.int_range(pl.len(), 0, -1).over("visitor")
    return theirs.sort("started_at", "session_id").filter(newest_first <= most).collect()


def check_passed(site: FeaturesSite, store: Store, day: date) -> None:
    """Raise ContractError unless `day` passed validation at its present content.

    A day that passed and was touched since, as late rows of the next day's delivery do, is a RetryableError: its steps
    run again within that night.
    """
    if passed_days(store, day, day) == [day]:
        return
    verdicts = read_days(store).filter(pl.col("event_date") == day)
    if verdicts["verdict"].to_list() == ["passed"]:
        raise RetryableError(
            f"{site.name}: {day} passed validation, but its events or sessions were changed since, and are not judged "
            f"yet. Wait for the night that does it, or run `nightjar sessionize` and `nightjar validate` for {day}"
        )
    raise ContractError(
        f"{site.name}: {day} has not passed validation at its present content. "
        f"Run `nightjar ingest`, `nightjar sessionize` and `nightjar validate` for {day}"
    )


def data_digest(store: Store, days: list[date], *settings: object) -> str:
    """Equal for equal training data: a digest of the days' contents and of the settings that select from them."""
    contents = read_days(store).filter(pl.col("event_date").is_in(days)).sort("event_date")["validated_content"]
    told = "\n".join([*map(str, days), *contents, *map(str, settings)])
    return hashlib.sha256(told.encode()).hexdigest()[:16]
