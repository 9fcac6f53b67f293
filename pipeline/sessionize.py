"""Events become sessions.

Reads   `events` of the day, those of the day after that go on with its sessions, `open_sessions` of the day before
Writes  `sessions`, `open_sessions`, `days`

A session belongs to the day of its first event, and touches at most two days. Of the past a day needs to know nothing
but the sessions that are open at its first midnight. So after a changed day the work goes on day by day until the
sessions open at midnight are what they were. Day by day, in any order, gives the same sessions as all at once.
"""

from datetime import date, timedelta
from typing import Any

import polars as pl

from pipeline.dates import ONE_DAY, day_end
from pipeline.days import read_days, stale_sessions, update_days, with_inputs
from pipeline.errors import ConfigurationError, RetryableError
from pipeline.forgotten import check_nobody_forgotten
from pipeline.ids import content_sums, content_text, stable_id
from pipeline.publish import StagedFile, Store
from pipeline.sessions import RUN_OF, CutDay, cut_day
from pipeline.settings import PipelineSite
from pipeline.side_by_side import side_by_side
from pipeline.tables import DAYS, OPEN_SESSIONS, events_table, sessions_table
from pipeline.terminal import track

FIRST_REACH = 4  # gaps after midnight, in which nearly all sessions have come to their end
LONGEST_DAY = timedelta(hours=25)
EVENT_COLUMNS = ("event_date", "user_bucket", "event_id", *RUN_OF, "user_id", "item_id", "event_type", "occurred_at")


def sessionize_stale(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Build the sessions of `day`, of earlier days that changed, and of days after them that this changes.

    Returns the counts of `day`. Raises RetryableError if an ingest that changes `day` is under way or died.
    """
    check_day(site, store, day)
    if day in read_days(store).filter(pl.col("events_content").is_null())["event_date"]:
        raise RetryableError(
            f"the events of {day} are in change: an ingest that brings rows of it is running, or was interrupted. "
            "Wait for it, or run `nightjar ingest` again for its delivery day, then this step"
        )
    built: list[date] = []
    while following := next_day(site, store, day, built):
        sessionize_day(site, store, following)
        built.append(following)
    known = read_days(store).filter(pl.col("event_date") == day).row(0, named=True)
    counts = {"events": known["num_events"], "sessions": known["num_sessions"]}
    if site.sessions.repeats == "drop":
        counts["repeats"] = known["num_repeats"]
    tie_share = round(known["num_tied"] / max(1, known["num_events"]), 4)
    return counts | {"tie_share": tie_share, "days_built": [str(each) for each in built]}


def check_day(site: PipelineSite, store: Store, day: date) -> None:
    """Raise ConfigurationError for a day that no ingest has brought: as a rule it is mistyped.

    A day that was delivered empty is known. A log without delivery days may also leave out days between others.
    """
    known: list[date] = read_days(store)["event_date"].to_list()
    is_between = not site.source.is_dated and bool(known) and known[0] <= day <= known[-1]
    if day not in known and not is_between:
        raise ConfigurationError(
            f"{site.name} has no events of {day}: no ingest has brought any, nor an empty delivery. Run "
            "`nightjar ingest` for it first, or mend the date"
        )


def next_day(site: PipelineSite, store: Store, day: date, built: list[date]) -> date | None:
    """The next day to build: `day`, what is stale before it, or what the last one built made stale after it."""
    stale = stale_sessions(store, site.sessions)
    last = built[-1] if built else date.min
    if last < day:
        return min(each for each in {day, *stale} if last < each <= day)
    return last + ONE_DAY if last + ONE_DAY in stale and was_built(store, last + ONE_DAY) else None


def was_built(store: Store, day: date) -> bool:
    """Whether a day has had sessions; if not, its own night will make them."""
    return day in read_days(store).filter(pl.col("sessions_built_from").is_not_null())["event_date"]


def sessionize_day(site: PipelineSite, store: Store, day: date) -> None:
    """Rebuild the sessions that start on `day`, a bucket at a time, and publish them.

    Raises OvertakenError where another night has published sessions of that day meanwhile: the record in `days` must
    be of the sessions that are there.
    """
    open_day(store, day)
    pinned = store.pinned()  # what the sessions are built from, and the record of it, must be of one moment
    inputs = with_inputs(read_days(pinned), site.sessions).filter(pl.col("event_date") == day)["inputs"].item()
    table = sessions_table(site.source.context)
    events, opened = pinned.scan(events_table(site.source.context)), pinned.scan(OPEN_SESSIONS)

    def make(bucket: int) -> tuple[list[StagedFile], list[StagedFile], pl.DataFrame]:
        in_bucket = pl.col("user_bucket") == bucket
        cut = sessions_of_day(opened.filter(in_bucket), events.filter(in_bucket), site, day)
        return store.stage(table, cut.sessions), store.stage(OPEN_SESSIONS, cut.still_open), bucket_facts(cut)

    staged: list[StagedFile] = []
    staged_open: list[StagedFile] = []
    facts = []
    for made in track(side_by_side(make, range(site.buckets)), f"sessionizing {day}", site.buckets):
        staged += made[0]
        staged_open += made[1]
        facts.append(made[2])
    check_nobody_forgotten(pinned)
    for of, files in ((OPEN_SESSIONS, staged_open), (table, staged)):
        store.commit(of, files, {"session_date": [day]}, base=pinned.version(of) or 0)
    update_days(store, day_facts(day, facts).with_columns(sessions_built_from=pl.lit(inputs)))


def open_day(store: Store, day: date) -> None:
    """Take back a verdict about a day before its sessions change."""
    changes: dict[str, Any] = {}
    known = read_days(store).filter(pl.col("event_date") == day)
    if known.is_empty():  # a day that was never ingested has no events, and that is a fact to record
        changes = {"events_content": "0", "num_events": 0, "num_duplicates": 0, "num_rejected": 0}
    elif known["verdict"].item() is not None:
        changes = {"sessions_content": None}
    if changes:
        types = {name: DAYS.columns[name] for name in changes}
        update_days(store, pl.DataFrame([{"event_date": day} | changes], schema_overrides=types))


def sessions_of_day(opened: pl.LazyFrame, events: pl.LazyFrame, site: PipelineSite, day: date) -> CutDay:
    """One bucket's sessions that start on `day`."""
    midnight = day_end(day, site.time_zone)
    wanted = [*EVENT_COLUMNS, *site.source.context]
    before = opened.filter(pl.col("session_date") == day - ONE_DAY).collect()
    own = events.filter(pl.col("event_date") == day).select(wanted).collect()
    late = own.filter(pl.col("occurred_at") >= midnight - site.sessions.gap)  # their sessions may go on after midnight
    after = events.filter(pl.col("event_date") == day + ONE_DAY).select(wanted)
    reach = FIRST_REACH * site.sessions.gap
    while True:
        near = after.filter(pl.col("occurred_at") < midnight + reach) if late.height else after.clear()
        following = near.collect().join(late, on=RUN_OF, how="semi", nulls_equal=True)
        cut = cut_day(before, pl.concat([own, following]), site, day)
        was_silent_by = midnight + reach - site.sessions.gap
        if reach >= LONGEST_DAY or cut.last_event_at is None or cut.last_event_at < was_silent_by:
            return cut
        reach = LONGEST_DAY  # somebody was still at it then


def bucket_facts(cut: CutDay) -> pl.DataFrame:
    """One row about a bucket's sessions: whole numbers, which add up to those of the day."""
    told_open = [pl.col(name).to_physical() for name in OPEN_SESSIONS.columns if name != "user_bucket"]
    sessions = cut.sessions.select(
        *content_sums(pl.col("session_id")), pl.col("num_events").sum(), pl.col("ended_at").to_physical().sum()
    )
    still_open = cut.still_open.select(id=stable_id(*told_open)).select(content_sums(pl.col("id")))
    counts = pl.DataFrame({"num_tied": cut.num_tied, "num_repeats": cut.num_repeats})
    return pl.concat([sessions, still_open.select(pl.all().name.prefix("open_")), counts], how="horizontal")


def day_facts(day: date, buckets: list[pl.DataFrame]) -> pl.DataFrame:
    """The row of `days`: counts, and digests that are the same for the same sessions in any number of buckets."""
    total = pl.concat(buckets).sum()
    return total.select(
        pl.lit(day).alias("event_date"),
        "num_tied",
        "num_repeats",
        num_sessions="num_ids",
        sessions_content=pl.concat_str(content_text(), "num_events", "ended_at", separator="-"),
        open_content=content_text("open_"),
    )
