"""What each user did last, and which items they had: the input of a list, and what the list must leave out."""

from collections.abc import Sequence
from datetime import date
from zoneinfo import ZoneInfo

import polars as pl

from features.settings import FeaturesSite
from pipeline.dates import ONE_DAY, day_end
from pipeline.days import passed_days
from pipeline.durations import Duration
from pipeline.privacy import anonymous, known_as
from pipeline.publish import Store
from pipeline.tables import events_table, sessions_table


def active_events(site: FeaturesSite, store: Store, last: date, within: Duration, bucket: int) -> pl.LazyFrame:
    """A bucket's events of the passed days `within` before the end of `last`, of everyone who can be given a list.

    That is every user; on a site without user ids, every visitor.
    """
    days = passed_days(store, first_day(site, last, within), last)
    events = store.scan(events_table(site.source.context)).filter(
        pl.col("event_date").is_in(days),
        pl.col("user_bucket") == bucket,
        pl.col("occurred_at") >= day_end(last, site.time_zone) - within,
    )
    return events.with_columns(user_id=listed_user(site)).filter(pl.col("user_id").is_not_null())


def listed_user(site: FeaturesSite) -> pl.Expr:
    """Whom a list is for: the user; on a site without user ids, the visitor."""
    return pl.col("visitor" if site.source.columns.user_id is None else "user_id")


def listed_id(site: FeaturesSite, given: str) -> str:
    """How tables name whom an id of the log stands for: the user; on a site without user ids, the session's visitor."""
    return anonymous(given) if site.source.columns.user_id is None else known_as(site, given)


def first_day(site: FeaturesSite, last: date, within: Duration) -> date:
    """The site's day that holds the instant `within` before the end of `last`."""
    return (day_end(last, site.time_zone) - within).astimezone(ZoneInfo(site.time_zone)).date()


def last_events(events: pl.LazyFrame, num_events: int, gap: Duration, context: Sequence[str] = ()) -> pl.DataFrame:
    """One row a user: the last items in time order (list `item_ids`), and when the last one was.

    The list `session` numbers what lies between silences of more than `gap`; `occurred_at`, `event_type` and the
    context columns are lists, too.
    """
    is_silent = (pl.col("occurred_at").diff() > gap).fill_null(False)
    return (
        events.sort("user_id", "occurred_at", "event_id")
        .group_by("user_id", maintain_order=True)
        .agg(
            pl.col("visitor").last(),
            pl.col("occurred_at", "event_type", *context).tail(num_events),
            item_ids=pl.col("item_id").tail(num_events),
            session=is_silent.cum_sum().cast(pl.Int64).tail(num_events),
            last_at=pl.col("occurred_at").last(),
        )
        .collect()
    )


def seen_items(events: pl.LazyFrame, last: date, within: Duration, site: FeaturesSite) -> pl.DataFrame:
    """One row per user and item that the user had `within` before the end of `last`."""
    recent = events.filter(pl.col("occurred_at") >= day_end(last, site.time_zone) - within)
    return recent.select("user_id", "item_id").unique().collect()


def last_sessions(site: FeaturesSite, store: Store, last: date, within: Duration, bucket: int) -> pl.DataFrame:
    """One row a visitor: the id of the newest session of the passed days that started by the end of `last`."""
    days = passed_days(store, first_day(site, last, within) - ONE_DAY, last)
    sessions = store.scan(sessions_table(site.source.context)).filter(
        pl.col("session_date").is_in(days), pl.col("user_bucket") == bucket
    )
    return (
        sessions.select("visitor", "session_id", "started_at")
        .sort("started_at", "session_id")
        .group_by("visitor")
        .agg(pl.col("session_id").last())
        .collect()
    )
