"""Mark the anonymous visitors of a store that was made before they were told apart from users.

Reads   `site`, `events`
Writes  `events` (visitor, event id and bucket of anonymous rows), `days`, `site`

All days change in one commit, so a store is never marked by halves. Their contents change, so the next night builds and
judges their sessions again. After a crash the next call finishes the work.
"""

import logging

import polars as pl

from pipeline.days import digest_events, read_days, update_days
from pipeline.ids import ANONYMOUS, user_bucket, visitor
from pipeline.normalise import event_id
from pipeline.publish import StagedFile, Store
from pipeline.settings import PipelineSite
from pipeline.tables import DAYS, SITE, events_table
from pipeline.terminal import track

log = logging.getLogger(__name__)


def mark_anonymous(site: PipelineSite, store: Store) -> None:
    """Mark the anonymous visitors of a store that has none marked yet; nothing in any other.

    Raises RetryableError where another writer changes the same days.
    """
    owner_base = store.version(SITE) or 0
    owner = store.scan(SITE, owner_base).collect()
    if owner.is_empty() or owner["marks_anonymous"].item():
        return
    events = events_table(site.source.context)
    base, days_base = store.version(events) or 0, store.version(DAYS) or 0
    is_old = pl.col("user_id").is_null() & ~pl.col("visitor").str.starts_with(ANONYMOUS)
    rows = store.scan(events, base)
    old = rows.filter(is_old).select(pl.col("event_date").unique()).collect().to_series().sort().to_list()
    in_change = read_days(store).filter(pl.col("events_content").is_null())["event_date"].to_list()
    changes = pl.DataFrame({"event_date": old}, schema={"event_date": pl.Date})
    days_base = update_days(store, changes.with_columns(events_content=pl.lit(None, pl.String)), days_base)
    if old:
        staged: list[StagedFile] = []
        for day in track(old, "marking anonymous visitors"):
            staged += store.stage(events, marked(site, rows.filter(pl.col("event_date") == day).collect()))
        store.commit(events, staged, {"event_date": old}, base=base)
        log.warning(
            "the anonymous visitors of %d days, %s to %s, are marked now, so that none is taken for the user of the "
            "same id; the next sessionize and validate do these days again",
            *(len(old), old[0], old[-1]),
        )
    if changed := sorted({*old, *in_change}):
        update_days(store, digest_events(store, events, changed), days_base)
    store.replace(SITE, owner.with_columns(marks_anonymous=True), {}, base=owner_base)


def marked(site: PipelineSite, rows: pl.DataFrame) -> pl.DataFrame:
    """Events with their visitor as it is named now, and what follows from it; known users stay as they are."""
    named = rows.with_columns(visitor=visitor(pl.col("user_id"), pl.col("given_session_id")))
    is_anonymous = pl.col("user_id").is_null()
    return named.with_columns(
        event_id=pl.when(is_anonymous).then(event_id(site.source.context)).otherwise("event_id"),
        user_bucket=user_bucket(pl.col("visitor"), site.buckets),
    )
