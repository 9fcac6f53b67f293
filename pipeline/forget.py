"""Forget users and anonymous visitors: take their rows out of every table, let no later ingest bring them back.

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
from pipeline.days import digest_events, read_days, update_days
from pipeline.errors import RetryableError
from pipeline.forgotten import REASON, blank, forgotten_users, hash_of
from pipeline.grown_days import told_visitor
from pipeline.ids import ANONYMOUS, user_bucket, visitor
from pipeline.ingest import day_facts
from pipeline.json_lines import in_fields
from pipeline.mark_anonymous import mark_anonymous
from pipeline.publish import Partition, StagedFile, Store
from pipeline.settings import PipelineSite
from pipeline.tables import DAYS, FILES, FORGOTTEN, OPEN_SESSIONS, REJECTED, Table, events_table, sessions_table

Copy = tuple[Table, str]
"""A further table that holds rows of users, and the column that names whose they are."""


def forget(site: PipelineSite, store: Store, names: Sequence[str], copies: Sequence[Copy]) -> dict[str, Any]:
    """Forget visitors, as the tables name them; return how many rows were removed by table, and the stale days.

    Each table is changed once, for all of them. Raises RetryableError if a step is at work on their days.
    """
    visitors = pl.Series(names, dtype=pl.String)
    if site.source.columns.user_id is None:  # releases and nights from before the marking; nobody else has that name
        visitors = pl.concat([visitors, visitors.str.strip_prefix(ANONYMOUS)])
    mark_anonymous(site, store)
    suppress(store, visitors)
    events, sessions = events_table(site.source.context), sessions_table(site.source.context)
    bases = {table.name: store.version(table) or 0 for table in (events, REJECTED, FILES, DAYS)}
    in_bucket = pl.col("user_bucket").is_in(buckets_of(site, visitors))
    is_theirs = in_bucket & is_one_of(visitors, "visitor")
    days = open_days(store, visitors, store.scan(events, bases[events.name]).filter(is_theirs))
    in_change = pl.DataFrame({"event_date": days}, schema={"event_date": pl.Date})
    days_base = update_days(store, in_change.with_columns(events_content=pl.lit(None, pl.String)), bases[DAYS.name])
    removed = {"events": remove_rows(store, events, is_theirs, bases[events.name])}
    files = recount(store, events, store.scan(FILES, bases[FILES.name]).collect(), days)
    removed["rejected"] = blank_rejected_rows(site, store, visitors, files, days, bases[REJECTED.name])
    book_files(store, files, days, bases[FILES.name])
    # Sessions of a store that was marked just now may still name an anonymous visitor without the mark.
    of_session = visitor(pl.col("user_id"), pl.col("visitor").str.strip_prefix(ANONYMOUS))
    held = [(sessions, of_session.is_in(visitors.implode()))]
    held += [(table, is_one_of(visitors, column)) for table, column in (*copies, (OPEN_SESSIONS, "visitor"))]
    for table, rows in held:
        removed[table.name] = remove_rows(store, table, rows)
    remove_pages(site, days)
    if days:
        update_days(store, day_facts(files, digest_events(store, events, days), days), days_base)
    check_gone(store, [(events, is_theirs), *held])
    remember(store, visitors, [])
    return {"removed": removed, "stale_days": days, "gone_after": gone_after(site)}


def is_one_of(visitors: pl.Series, column: str) -> pl.Expr:
    """Whether a column names one of some visitors."""
    return pl.col(column).is_in(visitors.implode()).fill_null(False)


def buckets_of(site: PipelineSite, visitors: pl.Series) -> list[int]:
    """The parts of the store that the rows of some visitors lie in."""
    return pl.select(user_bucket(pl.lit(visitors), site.buckets).unique()).to_series().sort().to_list()


def hashes(visitors: pl.Series) -> pl.Series:
    """How the list names visitors."""
    return pl.select(hash_of(pl.lit(visitors)).alias("user")).to_series()


def suppress(store: Store, visitors: pl.Series) -> None:
    """Put those on the list that ingest goes by who are not yet there."""
    known = forgotten_users(store)
    if new := [each for each, name in zip(visitors, hashes(visitors), strict=True) if name not in set(known)]:
        remember(store, pl.Series(new, dtype=pl.String), [])


def remember(store: Store, visitors: pl.Series, days: list[date]) -> None:
    """Note in the list which days are being changed for some visitors, so that a later try finds them."""
    version = store.version(FORGOTTEN) or 0
    known = store.scan(FORGOTTEN, version).collect()
    rows = pl.DataFrame({"user": hashes(visitors)}).join(known.select("user", "requested_at"), on="user", how="left")
    rows = rows.with_columns(
        pl.col("requested_at").fill_null(datetime.now(UTC)), open_days=pl.lit(days, pl.List(pl.Date))
    )
    changed = pl.concat([known.join(rows, on="user", how="anti"), rows.select(known.columns)])
    if not changed.sort("user").equals(known.sort("user")):
        store.replace(FORGOTTEN, changed, {}, base=version)


def open_days(store: Store, visitors: pl.Series, events: pl.LazyFrame) -> list[date]:
    """The event days that must change for visitors: those with events of theirs, and those an earlier try left open."""
    listed = store.scan(FORGOTTEN).filter(pl.col("user").is_in(hashes(visitors).implode()))
    mine = listed.select(pl.col("open_days").explode().unique().sort()).drop_nulls().collect().to_series().to_list()
    days = sorted({*mine, *events.select(pl.col("event_date").unique()).collect().to_series()})
    in_change = read_days(store).filter(pl.col("events_content").is_null())["event_date"].to_list()
    if others := sorted({*in_change} & {*days} - {*mine}):
        raise RetryableError(
            f"the events of {others[0]} are in change: an ingest is running, or an ingest or a forget was interrupted. "
            "Wait for it or run it again, then this. Who is to be forgotten is on the list: no later ingest takes in "
            "rows of theirs"
        )
    if days:
        remember(store, visitors, days)
    return days


def remove_rows(store: Store, table: Table, is_theirs: pl.Expr, version: int | None = None) -> int:
    """Take rows out of a table in one commit, a partition at a time; return how many there were."""
    base = (store.version(table) or 0) if version is None else version
    staged, touched = store.stage_without(table, base, is_theirs)
    if touched.is_empty():
        return 0
    replaced: dict[str, list[Partition]] = {name: touched[name].unique().to_list() for name in table.partition_by}
    store.commit(table, staged, replaced, base=base)
    return int(touched["left_out"].sum())


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
    site: PipelineSite, store: Store, visitors: pl.Series, files: pl.DataFrame, days: list[date], version: int
) -> int:
    """Blank the visitors' rejected rows, and book their former events there; return how many rejected rows were theirs.

    The text of unparsable rows goes as well, whoever's it is: it may name them, and no later ingest keeps any.
    """
    rejected = store.scan(REJECTED, version)
    user_ids = site.source.columns.user_id
    told = [told_visitor(site), *(in_fields(user_ids) if user_ids else ())]
    is_theirs = pl.any_horizontal(each.is_in(visitors.implode()) for each in told).fill_null(False)
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


def check_gone(store: Store, held: Sequence[tuple[Table, pl.Expr]]) -> None:
    """Raise RetryableError if a step that was at work meanwhile has written rows of the visitors."""
    left = [table.name for table, rows in held if not store.scan(table).filter(rows).head(1).collect().is_empty()]
    if left:
        raise RetryableError(
            f"a step that was running wrote rows of a forgotten visitor to {', '.join(left)} meanwhile. Run forget "
            "again, when no step is running"
        )


def gone_after(site: PipelineSite) -> date:
    """The first day on which a vacuum leaves nothing of what was removed now."""
    kept: timedelta = site.keep_versions_for
    return (datetime.now(UTC) + kept).date() + ONE_DAY
