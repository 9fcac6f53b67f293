"""Events become sessions.

Reads   `events` of the day, the day after (a session may cross midnight) and as many days before as a visit needs
Writes  `sessions`, `days`

A run is a visitor's events (of one given session id, where the log has them) without a silence longer than the gap.
A run longer than max_events or max_duration is cut. A session belongs to the day of its first event.
Events are ordered by time, then by event_id: a total order, so the order of input never matters.
"""

from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from pipeline.dates import ONE_DAY, day_end, day_start, days_between
from pipeline.days import read_days, stale_sessions, update_days, with_neighbours
from pipeline.errors import RetryableError
from pipeline.ids import content_digest, stable_id
from pipeline.publish import StagedFile, Store
from pipeline.settings import PipelineSite, Sessions
from pipeline.tables import DAYS, events_table, sessions_table
from pipeline.terminal import track

RUN_OF = ("visitor", "given_session_id")


def sessionize_stale(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Build the sessions of `day` and of every earlier day whose events changed; return the counts of `day`.

    Raises RetryableError if an ingest that changes `day` is under way or died.
    """
    if day in read_days(store).filter(pl.col("events_content").is_null())["event_date"]:
        raise RetryableError(
            f"the events of {day} are in change: an ingest that brings rows of it is running, or was interrupted. "
            "Wait for it, or run `nightjar ingest` again for its delivery day, then this step"
        )
    for stale in track(sorted({day, *stale_sessions(store, day)}), "sessionizing days"):
        sessionize_day(site, store, stale)
    known = read_days(store).filter(pl.col("event_date") == day)
    num_events, num_sessions = known.select("num_events", "num_sessions").row(0)
    return {"events": num_events, "sessions": num_sessions}


def sessionize_day(site: PipelineSite, store: Store, day: date) -> None:
    """Rebuild the sessions that start on `day`, a bucket at a time, and publish them in one commit."""
    built_from = open_day(store, day)
    table = sessions_table(site.source.context)
    events = store.scan(events_table(site.source.context))
    staged: list[StagedFile] = []
    digests = []
    for bucket in range(site.buckets):
        sessions = sessions_of_day(events.filter(pl.col("user_bucket") == bucket), site, day)
        if not sessions.is_empty():
            staged += store.stage(table, sessions)
            digests.append(sessions.select("session_id", "num_events"))
    store.commit(table, staged, {"session_date": [day]})
    ids = pl.concat(digests) if digests else pl.DataFrame(schema={"session_id": pl.String, "num_events": pl.Int64})
    digest = ids.select(content_digest(stable_id(pl.col("session_id"), pl.col("num_events")))).item()
    facts = {"event_date": day, "num_sessions": ids.height}
    update_days(store, pl.DataFrame([facts | {"sessions_content": digest, "sessions_built_from": built_from}]))


def open_day(store: Store, day: date) -> str:
    """What a day's sessions will be built from. A verdict about the day is taken back before they change."""
    changes: dict[str, Any] = {}
    days = read_days(store)
    known = days.filter(pl.col("event_date") == day)
    if known.is_empty():  # a day that was never ingested has no events, and that is a fact to record
        changes = {"events_content": "0", "num_events": 0, "num_duplicates": 0, "num_rejected": 0}
    elif known["verdict"].item() is not None:
        changes = {"sessions_content": None}
    if changes:
        types = {name: DAYS.columns[name] for name in changes}
        update_days(store, pl.DataFrame([{"event_date": day} | changes], schema_overrides=types))
        days = read_days(store)
    return str(with_neighbours(days).filter(pl.col("event_date") == day)["built_from"].item())


def sessions_of_day(events: pl.LazyFrame, site: PipelineSite, day: date) -> pl.DataFrame:
    """One bucket's sessions that start on `day`."""
    lookback = 1 + site.sessions.gap // ONE_DAY
    while True:
        first = day - lookback * ONE_DAY
        near = events.filter(pl.col("event_date").is_in(days_between(first, day + ONE_DAY))).collect()
        runs = mark_runs(near, site.sessions)
        opened_before = reaches_back(
            runs, day_start(first, site.time_zone), day_start(day, site.time_zone), site.sessions.gap
        )
        if not opened_before:
            break
        lookback += 1  # a visit without silence covers all of the days before: look for its beginning
    sessions = collect_sessions(cut_runs(runs, site.sessions), site)
    return sessions.filter(pl.col("session_date") == day)


def mark_runs(events: pl.DataFrame, rules: Sessions) -> pl.DataFrame:
    """Events in their total order, each with the number of its run."""
    ordered = events.sort(*RUN_OF, "occurred_at", "event_id", nulls_last=True)
    is_other = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in RUN_OF)
    is_silent = (pl.col("occurred_at").diff() > rules.gap).fill_null(False)
    return ordered.with_columns(run=(is_other | is_silent).cum_sum())


def reaches_back(runs: pl.DataFrame, window_start: datetime, day_start: datetime, gap: timedelta) -> bool:
    """Whether a run that reaches into the day may have begun before the events that were read."""
    spans = runs.group_by("run").agg(first=pl.col("occurred_at").first(), last=pl.col("occurred_at").last())
    may_begin_earlier = (pl.col("first") <= window_start + gap) & (pl.col("last") >= day_start)
    return bool(spans.select(may_begin_earlier.any()).item())


def cut_runs(runs: pl.DataFrame, rules: Sessions) -> pl.DataFrame:
    """Cut runs that last too long or hold too many events."""
    lasted = (pl.col("occurred_at") - pl.col("occurred_at").first().over("run")).dt.total_microseconds()
    by_time = runs.with_columns(time_part=lasted // (rules.max_duration // timedelta(microseconds=1)))
    place = pl.int_range(pl.len()).over("run", "time_part")
    return by_time.with_columns(event_part=place // rules.max_events)


def collect_sessions(events: pl.DataFrame, site: PipelineSite) -> pl.DataFrame:
    """One row per session, its events as lists."""
    offset = (pl.col("occurred_at") - pl.col("occurred_at").first()).dt.total_microseconds() / 1e6
    sessions = events.group_by("run", "time_part", "event_part", maintain_order=True).agg(
        *(pl.col(name).first() for name in RUN_OF),
        pl.col("user_bucket").first(),
        pl.col("user_id").first(),
        started_at=pl.col("occurred_at").first(),
        ended_at=pl.col("occurred_at").last(),
        first_event=pl.col("event_id").first(),
        num_events=pl.len().cast(pl.Int64),
        item_ids=pl.col("item_id"),
        event_types=pl.col("event_type"),
        offsets_seconds=offset,
        **{name: pl.col(name) for name in site.source.context},
    )
    return sessions.with_columns(
        session_id=stable_id(pl.col("visitor"), pl.col("given_session_id"), pl.col("first_event")),
        session_date=pl.col("started_at").dt.convert_time_zone(site.time_zone).dt.date(),
    )


def trim_sessions(sessions: pl.LazyFrame, day: date, site: PipelineSite) -> pl.LazyFrame:
    """Sessions without what happened after the end of `day`: nobody could have known it that night."""
    end = day_end(day, site.time_zone)
    whole = sessions.filter(pl.col("ended_at") < end)
    lists = ["item_ids", "event_types", "offsets_seconds", *site.source.context]
    since_start = pl.duration(microseconds=(pl.col("offsets_seconds") * 1e6).round().cast(pl.Int64))
    straddling = (
        sessions.filter((pl.col("ended_at") >= end) & (pl.col("started_at") < end))
        .explode(lists)
        .with_columns(ended_at=pl.col("started_at") + since_start)
        .filter(pl.col("ended_at") < end)
        .group_by(pl.exclude(*lists, "ended_at"), maintain_order=True)
        .agg(*lists, pl.col("ended_at").last())
        .with_columns(num_events=pl.col("item_ids").list.len().cast(pl.Int64))
    )
    return pl.concat([whole, straddling.select(sessions.collect_schema().names())])
