"""Raw files of a delivery day become events.

Reads   raw files, `files` (what was read before)
Writes  `events`, `rejected`, `files`, `days`

A touched event day is rebuilt from all files that hold it, so a late row, a re-delivered file and a mended file
are one mechanism. Where later files bring new rows to a day and nothing else changes, its events stay and these are
added: the same outcome, without reading its files again. Every row is counted once: rows read = events + rejected +
duplicates. Of exact duplicates the first one stays, in the order of delivery day, file and record.

Ingests of different days may run side by side. Two that touch one event day do not: the later one to commit is
refused (RetryableError), and its next try builds on what the other one wrote.

Rows are parsed once, laid aside by visitor bucket, and finished a bucket at a time, which bounds memory.
"""

import logging
import tempfile
import uuid
from collections.abc import Iterator
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.bots import VISITOR_DAY, find_bots
from pipeline.catalogue import known_items
from pipeline.column_changes import column_changes, odd_ids, tell_columns
from pipeline.days import read_days, update_days
from pipeline.errors import ConfigurationError, ContractError, RetryableError
from pipeline.forgotten import blank_rejected, forgotten_users, part_forgotten, without_text
from pipeline.grown_days import days_with_rows_of, grown_days
from pipeline.ids import content_parts, content_sums, content_text
from pipeline.mark_anonymous import mark_anonymous
from pipeline.normalise import event_id, normalise, raw_row
from pipeline.privacy import hash_user_ids
from pipeline.publish import StagedFile, Store
from pipeline.raw_files import RAW_FILE, chunks, compare, expand, find_files, rules_digest
from pipeline.raw_log import read_raw_log
from pipeline.settings import PipelineSite
from pipeline.side_by_side import side_by_side
from pipeline.tables import DAYS, FILES, FORGOTTEN, REJECTED, Table, events_table
from pipeline.terminal import track

log = logging.getLogger(__name__)

ROWS_HELD = 400_000  # candidates held in memory before they are laid aside by bucket

COUNTS = ("rows_read", "events", "duplicates", "rejected")


def ingest(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Take in what was delivered for `day`; return the counts of that delivery."""
    present = find_files(site, day)
    mark_anonymous(site, store)
    pinned = store.pinned()
    bases = versions(site, pinned)
    known = pinned.scan(FILES).collect()
    changed, gone = compare(present, known, day)
    if changed.is_empty() and gone.is_empty():
        return delivery_counts(pinned, day)
    changed = tell_columns(changed, site.source)
    news = [*column_changes(changed, known), *odd_ids(changed, site.source)]
    for line in news:
        log.warning(line)
    with tempfile.TemporaryDirectory(prefix="nightjar-ingest-") as folder:
        aside = Path(folder)
        users = forgotten_users(pinned)
        num_rows = parse(site, changed, aside, users)
        left_behind = interrupted_days(site, pinned, pl.concat([changed, gone])["path"].to_list())
        touched = sorted({*touched_days(aside, known, changed, gone, day), *left_behind})
        grown = grown_days(site, pinned, aside, known, changed, gone, [d for d in touched if d not in left_behind])
        rebuilt = [each for each in touched if each not in grown]
        others = other_files(site, known, changed, gone, rebuilt)
        num_rows = pl.concat([num_rows, parse(site, others, aside, users, only=rebuilt)])
        before = contents(pinned, grown)
        bases[DAYS.name] = publish_days(site, store, aside, rebuilt, grown, num_rows, users, bases)
        book_files(store, aside, changed, others, known, gone, touched, before, bases)
    return delivery_counts(store.pinned(), day) | ({"columns": news} if news else {})


def versions(site: PipelineSite, store: Store) -> dict[str, int]:
    """The versions that an ingest starts from; what another one writes later is a conflict."""
    tables: list[Table] = [FILES, DAYS, REJECTED, FORGOTTEN, events_table(site.source.context)]
    return {table.name: store.version(table) or 0 for table in tables}


def parse(
    site: PipelineSite, files: pl.DataFrame, aside: Path, users: pl.Series, only: list[date] | None = None
) -> pl.DataFrame:
    """Lay the rows of files aside as candidates by bucket, and as rejected rows; return how many were read by file.

    `only` skips the rows of other event days.
    """
    catalogues = {day: known_items(site, day) for day in files["delivery_date"].unique()}
    num_rows, held = [pl.DataFrame(schema=ROWS_OF_FILE)], Held(aside)

    def sort_out(read: tuple[date, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        day, rows = read
        records = without_text(hash_user_ids(rows, site), users)
        candidates, unfit = normalise(records, site, day, catalogues[day])
        rejected = blank_rejected(unfit, records, users, site)
        if only is None:
            return candidates, rejected, rows_by_file(rows)
        candidates, rejected = (part.filter(pl.col("event_date").is_in(only)) for part in (candidates, rejected))
        return candidates, rejected, rows_by_file(pl.concat([candidates, rejected], how="diagonal_relaxed"))

    for candidates, rejected, counted in side_by_side(sort_out, read_files(site, files)):
        num_rows.append(counted)
        held.add(candidates)
        lay_aside(rejected, aside / "rejected")
    held.let_go()
    return pl.concat(num_rows).group_by("path").agg(pl.col("num_rows").sum())


def read_files(site: PipelineSite, files: pl.DataFrame) -> Iterator[tuple[date, pl.DataFrame]]:
    """The records of files, some at a time, with their delivery day."""
    for group in track(list(chunks(files, site.source)), "reading raw files"):
        for rows in read_raw_log(group["path"].to_list(), site.source):
            yield group["delivery_date"][0], rows


ROWS_OF_FILE = {"path": pl.String, "num_rows": pl.Int64}


def rows_by_file(rows: pl.DataFrame) -> pl.DataFrame:
    """How many rows come from each file."""
    return rows.group_by(path="source_file").agg(num_rows=pl.len().cast(pl.Int64))


class Held:
    """Candidates on their way to the folders of their buckets: many at a time, so that the files are few."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        self.rows: list[pl.DataFrame] = []

    def add(self, candidates: pl.DataFrame) -> None:
        """Hold some more."""
        self.rows.append(candidates)
        if sum(rows.height for rows in self.rows) >= ROWS_HELD:
            self.let_go()

    def let_go(self) -> None:
        """Write what is held."""
        if self.rows:
            together = pl.concat(self.rows, how="diagonal")
            self.rows = []
            for (bucket,), part in together.partition_by("user_bucket", as_dict=True, maintain_order=False).items():
                lay_aside(part, self.aside / f"candidates-{bucket}")


def lay_aside(rows: pl.DataFrame, folder: Path) -> None:
    """One more Parquet file in a folder."""
    folder.mkdir(exist_ok=True)
    content = BytesIO()  # polars loses the system's error number when it writes into a file
    rows.write_parquet(content, compression="lz4", statistics=False)
    (folder / f"{uuid.uuid4().hex}.parquet").write_bytes(content.getbuffer())


def read_aside(folder: Path) -> pl.DataFrame:
    """All rows of a folder; an empty frame without columns where there is none."""
    if not folder.exists():
        return pl.DataFrame()
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.iterdir())], how="diagonal")


def touched_days(aside: Path, known: pl.DataFrame, changed: pl.DataFrame, gone: pl.DataFrame, day: date) -> list[date]:
    """Event days that new rows belong to, or that the earlier state of a changed or missing file held."""
    before = known.join(pl.concat([changed, gone]), on="path", how="semi")["event_date"].to_list()
    now = [
        found
        for path in aside.glob("*/*.parquet")
        for found in pl.read_parquet(path, columns=["event_date"])["event_date"].unique()
    ]
    return sorted({day, *before, *now})


def interrupted_days(site: PipelineSite, store: Store, paths: list[str]) -> list[date]:
    """Days that an ingest of these files left half done when it died: `files` does not know of them yet."""
    half_done = read_days(store).filter(pl.col("events_content").is_null())["event_date"].to_list()
    if not half_done:
        return []
    tables = (events_table(site.source.context), REJECTED)
    return [day for table in tables for day in days_with_rows_of(store.scan(table), half_done, paths)]


def contents(store: Store, days: list[date]) -> pl.DataFrame:
    """What the events of some days are: event_date, and sums that those of further events can be added to."""
    known = read_days(store).filter(pl.col("event_date").is_in(days))
    return known.select("event_date", *content_parts(pl.col("events_content")))


def other_files(
    site: PipelineSite, known: pl.DataFrame, changed: pl.DataFrame, gone: pl.DataFrame, touched: list[date]
) -> pl.DataFrame:
    """The remaining files that hold rows of touched days; they are read again, and judged by the rules of now."""
    holding = known.filter(pl.col("event_date").is_in(touched)).join(
        pl.concat([changed, gone]), on="path", how="anti", maintain_order="left"
    )
    others = holding.select(RAW_FILE.keys()).unique("path", maintain_order=True)
    for path in others["path"]:
        if not expand(path):
            days = holding.filter(pl.col("path") == path)["event_date"].cast(pl.String).to_list()
            raise ConfigurationError(
                f"{path} was ingested before and is gone, but {', '.join(days)} must be rebuilt and it holds rows of "
                "that. Put it back, or an empty file of that name to drop its rows"
            )
    rules = {day: rules_digest(site, day) for day in others["delivery_date"].unique()}
    judged_by = pl.Series([rules[day] for day in others["delivery_date"]], dtype=pl.String)
    return others.with_columns(judged_by=judged_by)


def publish_days(
    site: PipelineSite,
    store: Store,
    aside: Path,
    rebuilt: list[date],
    grown: list[date],
    num_rows: pl.DataFrame,
    users: pl.Series,
    bases: dict[str, int],
) -> int:
    """Finish every bucket, then make the touched days visible in `events` and `rejected`; return the version of `days`.

    Raises ContractError, before anything is visible, if an outcome is missing for any row that was read, and
    RetryableError if another user is to be forgotten than the `users` that were known when the rows were read.
    """
    run = uuid.uuid4().hex
    table = events_table(site.source.context)
    buckets = [int(folder.name.rsplit("-", 1)[1]) for folder in aside.glob("candidates-*")]
    events: list[StagedFile] = []
    refused: list[StagedFile] = []
    stays = store.scan(table, bases[table.name]).filter(pl.col("event_date").is_in(grown))

    def finish(bucket: int) -> tuple[list[StagedFile], list[StagedFile]]:
        told = stays.filter(pl.col("user_bucket") == bucket).select("event_date", "event_id").collect()
        return finish_bucket(site, store, aside, bucket, told, grown, users, run)

    finished = side_by_side(finish, sorted(buckets))
    for accepted, bots in track(finished, "writing events", len(buckets)):
        events += accepted
        refused += bots
    early = read_aside(aside / "rejected")
    if not early.is_empty():
        refused += store.stage(REJECTED, early.with_columns(ingested_run=pl.lit(run)))
        lay_aside(outcome(early, "rejected"), aside / "outcomes")
    check_counts(num_rows, counts_by_file(aside))
    if (store.version(FORGOTTEN) or 0) != bases[FORGOTTEN.name]:
        raise RetryableError("a user was forgotten while raw files were read. Nothing was published; run ingest again")
    # From here on the touched days are in change: no verdict about them holds, should this process die.
    in_change = pl.DataFrame({"event_date": sorted({*rebuilt, *grown})})
    version = update_days(store, in_change.with_columns(events_content=pl.lit(None, pl.String)), bases[DAYS.name])
    for of, files in ((table, events), (REJECTED, refused)):
        publish(store, of, files, rebuilt, grown, run, bases[of.name])
    return version


def publish(
    store: Store, table: Table, files: list[StagedFile], rebuilt: list[date], grown: list[date], run: str, base: int
) -> None:
    """Swap in the rows of rebuilt days, and add those of grown ones."""
    more = [file for file in files if file.partition["event_date"] in {str(day) for day in grown}]
    claimed = [f"event_date={day}" for day in grown]
    if rebuilt:
        whole = [file for file in files if file not in more]
        base = store.commit(table, whole, {"event_date": rebuilt}, {"ingested_run": run}, base, claimed)
    if more:
        store.append(table, more, claimed, {"ingested_run": run}, base)


def finish_bucket(
    site: PipelineSite,
    store: Store,
    aside: Path,
    bucket: int,
    told: pl.DataFrame,
    grown: list[date],
    users: pl.Series,
    run: str,
) -> tuple[list[StagedFile], list[StagedFile]]:
    """Judge a bucket's candidates and write them; return the unseen files of `events` and `rejected`.

    `told` are events of `grown` days, which stay; a candidate may tell one of them again.
    """
    judged, found, duplicates = judge(read_aside(aside / f"candidates-{bucket}"), told, grown, site)
    accepted, bots = part_forgotten(judged, found, users)
    lay_aside(outcomes(accepted, bots, duplicates), aside / "outcomes")
    lay_aside(accepted.group_by("event_date").agg(content_sums(pl.col("event_id"))), aside / "contents")
    return (
        store.stage(events_table(site.source.context), accepted.with_columns(ingested_run=pl.lit(run))),
        store.stage(REJECTED, bots.with_columns(ingested_run=pl.lit(run))),
    )


def check_counts(read: pl.DataFrame, counts: pl.DataFrame) -> None:
    """Raise ContractError unless each row that was read from a file is an event, rejected or a duplicate."""
    told = counts.group_by("path").agg(num_outcomes=pl.col("rows_read").sum())
    both = read.join(told, on="path", how="full", coalesce=True).fill_null(0)
    lost = both.filter(pl.col("num_rows") != pl.col("num_outcomes")).sort("path")
    if not lost.is_empty():
        path, num_rows, num_outcomes = lost.row(0)
        raise ContractError(
            f"{num_rows} rows were read but {num_outcomes} are accounted for as events, rejected or duplicates of "
            f"{path}. Nothing was published; this is a fault of nightjar, please report it"
        )


def judge(
    candidates: pl.DataFrame, told: pl.DataFrame, grown: list[date], site: PipelineSite
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Split a bucket's candidates into events, rows of bots (`grown` days bring none), and exact duplicates."""
    unique, duplicates = split_duplicates(candidates.with_columns(event_id=event_id(site.source.context)))
    if told.height:
        duplicates = pl.concat([duplicates, unique.join(told, on=("event_date", "event_id"), how="semi")])
        unique = unique.join(told, on=("event_date", "event_id"), how="anti")
    rules = site.source.bots
    judged = unique.filter(~pl.col("event_date").is_in(grown)) if grown else unique
    found = find_bots(judged, rules) if rules.are_judged else pl.DataFrame()
    if found.is_empty():
        return unique, REJECTED.empty().drop("ingested_run"), duplicates
    bots = unique.join(found, on=VISITOR_DAY)
    refused = bots.select(
        "event_date", "visitor", "source_file", "record", "detail", reason=pl.lit("bot"), fields=raw_row(bots)
    )
    return unique.join(found, on=VISITOR_DAY, how="anti"), refused, duplicates


def split_duplicates(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of which each event is told once, and those that tell one again.

    Of equal ids the first row stays, in the order of delivery day, file and record. Few rows have an equal, so these
    are found by a short hash first; only they are put in order.
    """
    rows = rows.with_row_index("place")
    doubtful = rows.filter(rows["event_id"].hash().is_duplicated()).sort("delivery_date", "source_file", "record")
    again = doubtful.filter(~doubtful["event_id"].is_first_distinct())
    is_first = np.ones(rows.height, dtype=bool)
    is_first[again["place"].to_numpy()] = False
    return rows.drop("place").filter(is_first), again.drop("place")


def outcomes(accepted: pl.DataFrame, bots: pl.DataFrame, duplicates: pl.DataFrame) -> pl.DataFrame:
    """Counts of a bucket's rows by file, event day and outcome."""
    return pl.concat([outcome(accepted, "events"), outcome(bots, "rejected"), outcome(duplicates, "duplicates")])


def outcome(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """Counts by file and event day of rows that met one outcome."""
    return rows.group_by(path="source_file", event_date="event_date").agg(
        outcome=pl.lit(name), n=pl.len().cast(pl.Int64)
    )


def book_files(
    store: Store,
    aside: Path,
    changed: pl.DataFrame,
    others: pl.DataFrame,
    known: pl.DataFrame,
    gone: pl.DataFrame,
    touched: list[date],
    before: pl.DataFrame,
    bases: dict[str, int],
) -> None:
    """Record in `files` what each file held, and in `days` what each touched day is now made of.

    `before` is what those events are that stayed.
    """
    counts = counts_by_file(aside)
    read = pl.concat([changed, others])
    replaced = known.join(pl.concat([read, gone]), on="path", how="semi").filter(
        pl.col("event_date").is_in(touched) & ~pl.col("event_date").is_in(before["event_date"].to_list())
    )
    kept = known.join(replaced, on=["path", "event_date"], how="anti")
    told = pl.concat([counts.select("path"), kept.select("path")])
    empty = read.join(told, on="path", how="anti").with_columns(  # a file without rows was delivered all the same
        event_date="delivery_date", **dict.fromkeys(COUNTS, pl.lit(0, pl.Int64))
    )
    booked = pl.concat([read.join(counts, on="path"), empty], how="diagonal_relaxed")
    rows = pl.concat([kept, booked.select(kept.columns)])
    deliveries = sorted({*read["delivery_date"], *replaced["delivery_date"]})
    update_days(store, day_facts(rows, digests(aside, before), touched), bases[DAYS.name])
    booked_now = rows.filter(pl.col("delivery_date").is_in(deliveries))
    # Whoever counted on the files of a touched day without knowing of these must try again.
    rebuilt = [f"event_date={each}" for each in touched]
    staged = store.stage(FILES, booked_now)
    store.commit(FILES, staged, {"delivery_date": deliveries}, base=bases[FILES.name], also_claim=rebuilt)


def counts_by_file(aside: Path) -> pl.DataFrame:
    """Rows, events, duplicates and rejected rows by file and event day."""
    told = read_aside(aside / "outcomes")
    if told.is_empty():
        return pl.DataFrame(schema={"path": pl.String, "event_date": pl.Date} | dict.fromkeys(COUNTS, pl.Int64))
    by_outcome = [pl.col("n").filter(pl.col("outcome") == name).sum().alias(name) for name in COUNTS[1:]]
    return told.group_by("path", "event_date").agg(*by_outcome, rows_read=pl.col("n").sum())


def digests(aside: Path, before: pl.DataFrame) -> pl.DataFrame:
    """What the events of each touched day are, those that stayed and those that came: event_date, events_content."""
    sums = pl.concat([before, read_aside(aside / "contents")], how="diagonal")
    total = sums.group_by("event_date").sum().filter(pl.col("num_ids") > 0)
    return total.select("event_date", events_content=content_text())


def day_facts(files: pl.DataFrame, digests: pl.DataFrame, touched: list[date]) -> pl.DataFrame:
    """What each touched day is made of: a digest of its events, and counts over all files."""
    counts = files.group_by("event_date").agg(
        num_events=pl.col("events").sum(),
        num_duplicates=pl.col("duplicates").sum(),
        num_rejected=pl.col("rejected").sum(),
    )
    return (
        pl.DataFrame({"event_date": touched})
        .join(digests, on="event_date", how="left")
        .join(counts, on="event_date", how="left")
        .with_columns(
            pl.col("events_content").fill_null("0"), pl.col("num_events", "num_duplicates", "num_rejected").fill_null(0)
        )
    )


def delivery_counts(store: Store, day: date) -> dict[str, Any]:
    """What became of the rows of a delivery day; rows of bots also by the rule that told them."""
    files = store.scan(FILES).filter(pl.col("delivery_date") == day).collect()
    total = files.select(pl.col(COUNTS).sum()).row(0, named=True)
    rejected = (
        store.scan(REJECTED)
        .filter(
            pl.col("event_date").is_in(files["event_date"].unique().to_list()),
            pl.col("source_file").is_in(files["path"].unique().to_list()),
        )
        .group_by("reason", rule=pl.col("detail").str.extract(r"^(\w+):"))
        .agg(n=pl.len())
        .collect()
    )
    reasons = rejected.group_by("reason").agg(pl.col("n").sum()).sort("reason")
    bots = rejected.filter(pl.col("reason") == "bot").select("rule", "n").sort("rule")
    told = {"bots": dict(bots.iter_rows())} if bots.height else {}
    return {"files": files["path"].n_unique(), **total, "rejected": dict(reasons.iter_rows()), **told}
