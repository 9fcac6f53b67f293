"""Forget a user: take their rows out of every table, and let no later ingest bring them back.

Reads   `events`, `rejected`, `files`, `sessions`, and what else holds rows of users
Writes  the same without them, `forgotten`, `days`

Nothing of a row is kept but its place: it is counted as rejected for the reason `forgotten`, as an ingest of the raw
file would count it. Touched days become stale, so that the next night builds and judges their sessions again. Every
part of the work finds out itself what is left to do: after a crash, the same command finishes it.

What earlier versions of the tables hold goes with the first `vacuum` after `keep_versions_for`. Raw files, backups and
models that were trained before are out of reach.
"""

import shutil
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.dates import ONE_DAY
from pipeline.days import read_days, update_days
from pipeline.errors import ConfigurationError, RetryableError
from pipeline.forgotten import REASON, blank, hash_of
from pipeline.ids import content_digest, user_bucket
from pipeline.ingest import day_facts
from pipeline.json_lines import in_fields
from pipeline.privacy import known_as
from pipeline.publish import Partition, StagedFile, Store
from pipeline.settings import PipelineSite
from pipeline.tables import DAYS, FILES, FORGOTTEN, OPEN_SESSIONS, REJECTED, Table, events_table, sessions_table

Copy = tuple[Table, str]
"""A further table that holds rows of users, and the column that names whose they are."""


def forget(site: PipelineSite, store: Store, user: str, copies: Sequence[Copy]) -> dict[str, Any]:
    """Forget a user, named as in the log; return how many rows were removed by table, and the days that are stale.

    Raises ConfigurationError for a site without user ids, RetryableError if a step is at work on the user's days.
    """
    user_id = check_user(site, user)
    suppress(store, user_id)
    events, sessions = events_table(site.source.context), sessions_table(site.source.context)
    bases = {table.name: store.version(table) or 0 for table in (events, REJECTED, FILES, DAYS)}
    is_theirs = (pl.col("user_bucket") == bucket_of(site, user_id)) & (pl.col("user_id") == user_id)
    days = open_days(store, user_id, store.scan(events, bases[events.name]).filter(is_theirs))
    in_change = pl.DataFrame({"event_date": days}, schema={"event_date": pl.Date})
    days_base = update_days(store, in_change.with_columns(events_content=pl.lit(None, pl.String)), bases[DAYS.name])
    removed = {"events": remove_rows(store, events, is_theirs, bases[events.name])}
    files = recount(store, events, store.scan(FILES, bases[FILES.name]).collect(), days)
    removed["rejected"] = blank_rejected_rows(site, store, user_id, files, days, bases[REJECTED.name])
    book_files(store, files, days, bases[FILES.name])
    removed["sessions"] = remove_rows(store, sessions, is_theirs)
    for table, column in (*copies, (OPEN_SESSIONS, "visitor")):
        removed[table.name] = remove_rows(store, table, pl.col(column) == user_id)
    remove_pages(site, days)
    if days:
        update_days(store, day_facts(files, digests(store, events, days), days), days_base)
    check_gone(store, [(events, "user_id"), (sessions, "user_id"), *copies], user_id)
    remember(store, user_id, [])
    return {"removed": removed, "stale_days": days, "gone_after": gone_after(site)}


def check_user(site: PipelineSite, user: str) -> str:
    """The user as the tables know them."""
    if site.source.columns.user_id is None:
        raise ConfigurationError(
            f"{site.name} has no user ids (source.columns.user_id), so there is no user to forget; its visitors are "
            "known by their session ids only"
        )
    if not user.strip():
        raise ConfigurationError("give the id of a user, as it stands in the log: --user ID")
    return known_as(site, user)


def bucket_of(site: PipelineSite, user_id: str) -> int:
    """The part of the store that a user's rows lie in."""
    return int(pl.select(user_bucket(pl.lit(user_id), site.buckets)).item())


def suppress(store: Store, user_id: str) -> None:
    """Put a user on the list that ingest goes by, unless they are on it."""
    if store.scan(FORGOTTEN).filter(pl.col("user") == named(user_id)).collect().is_empty():
        remember(store, user_id, [])


def named(user_id: str) -> str:
    """How the list names a user."""
    return str(pl.select(hash_of(pl.lit(user_id))).item())


def remember(store: Store, user_id: str, days: list[date]) -> None:
    """Note in the list which days are being changed for a user, so that a later try finds them."""
    version = store.version(FORGOTTEN) or 0
    known = store.scan(FORGOTTEN, version).collect()
    is_theirs = pl.col("user") == named(user_id)
    earlier = known.filter(is_theirs)["requested_at"].to_list()
    row = {"user": named(user_id), "requested_at": earlier[0] if earlier else datetime.now(UTC), "open_days": days}
    rows = pl.concat([known.filter(~is_theirs), pl.DataFrame([row], schema=dict(FORGOTTEN.columns))])
    store.replace(FORGOTTEN, rows, {}, base=version)


def open_days(store: Store, user_id: str, events: pl.LazyFrame) -> list[date]:
    """The event days that must change for a user: those with events of theirs, and those an earlier try left open."""
    left = store.scan(FORGOTTEN).filter(pl.col("user") == named(user_id)).select(pl.col("open_days").explode())
    mine = left.drop_nulls().collect().to_series().to_list()
    days = sorted({*mine, *events.select(pl.col("event_date").unique()).collect().to_series()})
    in_change = read_days(store).filter(pl.col("events_content").is_null())["event_date"].to_list()
    if others := sorted({*in_change} & {*days} - {*mine}):
        raise RetryableError(
            f"the events of {others[0]} are in change: an ingest is running, or an ingest or a forget was interrupted. "
            "Wait for it or run it again, then this. The user is on the list: no later ingest takes in rows of theirs"
        )
    if days != mine:
        remember(store, user_id, days)
    return days


def remove_rows(store: Store, table: Table, is_theirs: pl.Expr, version: int | None = None) -> int:
    """Take rows out of a table in one commit, a partition at a time; return how many there were."""
    base = (store.version(table) or 0) if version is None else version
    rows = store.scan(table, base)
    held = rows.filter(is_theirs).group_by(table.partition_by).len().collect()
    if held.is_empty():
        return 0
    staged: list[StagedFile] = []
    for partition in held.select(table.partition_by).iter_rows(named=True):
        is_here = pl.all_horizontal(pl.col(name) == value for name, value in partition.items())
        staged += store.stage(table, rows.filter(is_here, ~is_theirs.fill_null(False)).collect())
    replaced: dict[str, list[Partition]] = {name: held[name].unique().to_list() for name in table.partition_by}
    store.commit(table, staged, replaced, base=base)
    return int(held["len"].sum())


def recount(store: Store, events: Table, files: pl.DataFrame, days: list[date]) -> pl.DataFrame:
    """`files` as it is once every row of the days that is neither an event nor a duplicate counts as rejected."""
    here = pl.col("event_date").is_in(days)
    counts = store.scan(events).filter(here).group_by("event_date", path="source_file").agg(now=pl.len()).collect()
    num_events = pl.when(here).then(pl.col("now").fill_null(0).cast(pl.Int64)).otherwise("events")
    recounted = files.join(counts, on=["path", "event_date"], how="left", maintain_order="left")
    return (
        recounted.with_columns(events=num_events)
        .with_columns(rejected=pl.col("rows_read") - pl.col("events") - pl.col("duplicates"))
        .drop("now")
    )


def blank_rejected_rows(
    site: PipelineSite, store: Store, user_id: str, files: pl.DataFrame, days: list[date], version: int
) -> int:
    """Blank a user's rejected rows, and book their former events there; return how many rejected rows were theirs.

    The text of unparsable rows goes as well, whoever's it is: it may name the user, and no later ingest keeps any.
    """
    rejected = store.scan(REJECTED, version)
    is_theirs = is_row_of(site, user_id)
    is_text = (pl.col("reason") == "unparsable_row") & pl.col("fields").is_not_null()
    found = rejected.filter(is_theirs | is_text).group_by("event_date").agg(theirs=is_theirs.sum()).collect()
    changed = sorted({*days, *found["event_date"]})
    staged: list[StagedFile] = []
    for day in changed:
        rows = blank(rejected.filter(pl.col("event_date") == day).collect(), is_theirs)
        textless = rows.with_columns(fields=pl.when(~is_text).then("fields"))
        here = files.filter(pl.col("event_date") == day) if day in days else files.clear()
        staged += store.stage(REJECTED, pl.concat([textless, missing_rows(here, rows)], how="diagonal_relaxed"))
    if changed:
        store.commit(REJECTED, staged, {"event_date": changed}, base=version)
    return int(found["theirs"].sum())


def is_row_of(site: PipelineSite, user_id: str) -> pl.Expr:
    """Whether a rejected row is one of a user: its fields are those of the log, as names or as a path."""
    told = in_fields(str(site.source.columns.user_id))
    return pl.any_horizontal(*(value == user_id for value in told)).fill_null(False)


def missing_rows(files: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    """Rows for `rejected`, as many as `files` counts and the table lacks: the former events of a forgotten user."""
    booked = rejected.group_by(path="source_file").agg(booked=pl.len())
    short = files.join(booked, on="path", how="left").with_columns(
        n=pl.col("rejected") - pl.col("booked").fill_null(0).cast(pl.Int64)
    )
    rows = short.filter(pl.col("n") > 0).select("event_date", source_file="path", n="n")
    return rows.select(pl.all().exclude("n").repeat_by("n").explode()).with_columns(reason=pl.lit(REASON))


def book_files(store: Store, files: pl.DataFrame, days: list[date], version: int) -> None:
    """Write the counts of the files that hold rows of the days."""
    deliveries = files.filter(pl.col("event_date").is_in(days))["delivery_date"].unique().sort().to_list()
    if deliveries:
        staged = store.stage(FILES, files.filter(pl.col("delivery_date").is_in(deliveries)))
        rebuilt = [f"event_date={day}" for day in days]
        store.commit(FILES, staged, {"delivery_date": deliveries}, base=version, also_claim=rebuilt)


def digests(store: Store, events: Table, days: list[date]) -> pl.DataFrame:
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


def remove_pages(site: PipelineSite, days: list[date]) -> None:
    """Remove the reports about what the days were: they may show rows. The next validate writes them anew.

    The reports of `nightjar report` show some users' histories, which may be of any day: all of them go.
    """
    docs = site.home / "data_docs" / site.name
    for day in days:
        for folder in [path for path in docs.rglob(str(day)) if path.is_dir()]:
            shutil.rmtree(folder, ignore_errors=True)
    for page in report_pages(site).glob(f"report-{site.name}-????-??-??.html"):
        page.unlink(missing_ok=True)


def report_pages(site: PipelineSite) -> Path:
    """The folder of the reports that show users, `report-SITE-DAY.html`."""
    return site.home / "reports"


def check_gone(store: Store, tables: Sequence[Copy], user_id: str) -> None:
    """Raise RetryableError if a step that was at work meanwhile has written rows of the user."""
    left = [
        table.name
        for table, column in tables
        if not store.scan(table).filter(pl.col(column) == user_id).head(1).collect().is_empty()
    ]
    if left:
        raise RetryableError(
            f"a step that was running wrote rows of the user to {', '.join(left)} meanwhile. Run forget again, when no "
            "step is running"
        )


def gone_after(site: PipelineSite) -> date:
    """The first day on which a vacuum leaves nothing of what was removed now."""
    kept: timedelta = site.keep_versions_for
    return (datetime.now(UTC) + kept).date() + ONE_DAY
