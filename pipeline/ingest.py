"""Raw files of a delivery day become events.

Reads   raw files, `files` (what was read before)
Writes  `events`, `rejected`, `files`, `days`

A touched event day is rebuilt from all files that hold it, so a late row, a re-delivered file and a mended file
are one mechanism. Every row is counted once: rows read = events + rejected + duplicates. Of exact duplicates the
first one stays, in the order of delivery day, file and record.

Ingests of different days may run side by side. Two that touch one event day do not: the later one to commit is
refused (RetryableError), and its next try builds on what the other one wrote.

Rows are parsed once, laid aside by visitor bucket, and finished a bucket at a time, which bounds memory.
"""

import hashlib
import tempfile
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import polars as pl

from pipeline.days import read_days, update_days
from pipeline.errors import ConfigurationError, ContractError, RetryableError
from pipeline.forgotten import blank_rejected, forgotten_users, part_forgotten, without_text
from pipeline.ids import content_digest
from pipeline.normalise import normalise
from pipeline.privacy import hash_user_ids
from pipeline.publish import StagedFile, Store
from pipeline.raw_log import log_format, read_raw_log
from pipeline.settings import PipelineSite, Source
from pipeline.tables import DAYS, FILES, FORGOTTEN, REJECTED, Table, events_table
from pipeline.terminal import track

CHUNK_BYTES = 32 * 2**20  # raw bytes (mostly packed) parsed at a time

COUNTS = ("rows_read", "events", "duplicates", "rejected")
RAW_FILE = {"delivery_date": pl.Date, "path": pl.String, "size": pl.Int64, "sha256": pl.String}


def ingest(site: PipelineSite, store: Store, day: date) -> dict[str, Any]:
    """Take in what was delivered for `day`; return the counts of that delivery."""
    present = find_files(site, day)
    bases = versions(site, store)
    known = store.scan(FILES, bases[FILES.name]).collect()
    changed, gone = compare(present, known, day)
    if changed.is_empty() and gone.is_empty():
        return delivery_counts(store, day)
    with tempfile.TemporaryDirectory(prefix="nightjar-ingest-") as folder:
        aside = Path(folder)
        users = forgotten_users(store, bases[FORGOTTEN.name])
        num_rows = parse(site, changed, aside, users)
        left_behind = interrupted_days(site, store, pl.concat([changed, gone])["path"].to_list())
        touched = sorted({*touched_days(aside, known, changed, gone, day), *left_behind})
        others = other_files(known, changed, gone, touched)
        num_rows += parse(site, others, aside, users, only=touched)
        bases[DAYS.name] = publish_days(site, store, aside, touched, num_rows, users, bases)
        book_files(store, aside, changed, others, known, gone, touched, bases)
    return delivery_counts(store, day)


def versions(site: PipelineSite, store: Store) -> dict[str, int]:
    """The versions that an ingest starts from; what another one writes later is a conflict."""
    tables: list[Table] = [FILES, DAYS, REJECTED, FORGOTTEN, events_table(site.source.context)]
    return {table.name: store.version(table) or 0 for table in tables}


def find_files(site: PipelineSite, day: date) -> pl.DataFrame:
    """The raw files delivered for a day.

    Without `{date}` in the path a file belongs to the day on which its present content was first found.
    """
    pattern = site.resolve(site.source.events.replace("{date}", day.isoformat()))
    paths = sorted(expand(pattern))
    if not paths and not site.source.is_dated:
        raise ConfigurationError(f"no file matches {pattern} (source.events). {where_from(site)}")
    if not paths:
        raise ConfigurationError(
            f"no input for {day}: no file matches {pattern}. Wait for the delivery; "
            f"if {day} really had no events, deliver an empty file. {where_from(site)}"
        )
    facts = [(day, path, *size_and_digest(path)) for path in paths]
    return pl.DataFrame(facts, schema=RAW_FILE, orient="row")


def where_from(site: PipelineSite) -> str:
    """What relative paths hang from, said in every message about a missing file."""
    return f"Relative paths hang from NIGHTJAR_HOME, now {site.home.resolve()}"


def expand(pattern: str) -> list[str]:
    """Files that match a pattern, here or in an object store."""
    files, path = fsspec.core.url_to_fs(pattern)
    found = files.glob(path)
    return [files.unstrip_protocol(each) for each in found] if "://" in pattern else found


def size_and_digest(path: str) -> tuple[int, str]:
    """A file's bytes and sha256."""
    try:
        with fsspec.open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}. Mend it, or source.events") from error


def compare(present: pl.DataFrame, known: pl.DataFrame, day: date) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Files that are new or changed, and files of this delivery that are no longer there."""
    changed = present.join(known, on=["path", "sha256"], how="anti")
    delivered = known.filter(pl.col("delivery_date") == day).select(RAW_FILE.keys()).unique("path", maintain_order=True)
    return changed, delivered.join(present, on="path", how="anti")


def chunks(files: pl.DataFrame, source: Source) -> Iterator[pl.DataFrame]:
    """Files in groups of one format and about CHUNK_BYTES."""
    formats = pl.Series([log_format(path, source) for path in files["path"]], dtype=pl.String)
    number = pl.col("size").cum_sum() // CHUNK_BYTES
    for _, group in files.group_by(formats.alias("format"), number.alias("number"), maintain_order=True):
        yield group


def parse(
    site: PipelineSite, files: pl.DataFrame, aside: Path, users: pl.Series, only: list[date] | None = None
) -> int:
    """Lay the rows of files aside as candidates by bucket, and as rejected rows; return how many were read.

    `only` skips the rows of other event days.
    """
    num_rows = 0
    for group in track(list(chunks(files, site.source)), "reading raw files"):
        for read in read_raw_log(group["path"].to_list(), site.source):
            records = without_text(hash_user_ids(read, site), users)
            dated = records.join(group.select("delivery_date", source_file="path"), on="source_file", how="left")
            candidates, unfit = normalise(dated, site)
            rejected = blank_rejected(unfit, records, users, site)
            num_skipped = 0
            if only is not None:
                num_skipped = candidates.height + rejected.height
                candidates = candidates.filter(pl.col("event_date").is_in(only))
                rejected = rejected.filter(pl.col("event_date").is_in(only))
                num_skipped -= candidates.height + rejected.height
            num_rows += records.height - num_skipped
            for (bucket,), part in candidates.group_by("user_bucket"):
                lay_aside(part, aside / f"candidates-{bucket}")
            lay_aside(rejected, aside / "rejected")
    return num_rows


def lay_aside(rows: pl.DataFrame, folder: Path) -> None:
    """One more Parquet file in a folder."""
    folder.mkdir(exist_ok=True)
    rows.write_parquet(folder / f"{uuid.uuid4().hex}.parquet", compression="lz4")


def read_aside(folder: Path) -> pl.DataFrame:
    """All rows of a folder; an empty frame without columns where there is none."""
    return pl.read_parquet(folder / "*.parquet") if folder.exists() else pl.DataFrame()


def touched_days(aside: Path, known: pl.DataFrame, changed: pl.DataFrame, gone: pl.DataFrame, day: date) -> list[date]:
    """Event days that new rows belong to, or that the earlier state of a changed or missing file held."""
    before = known.join(pl.concat([changed, gone]), on="path", how="semi")["event_date"].to_list()
    now = [
        found
        for folder in aside.iterdir()
        for found in pl.scan_parquet(folder / "*.parquet").select(pl.col("event_date").unique()).collect()["event_date"]
    ]
    return sorted({day, *before, *now})


def interrupted_days(site: PipelineSite, store: Store, paths: list[str]) -> list[date]:
    """Days that an ingest of these files left half done when it died: `files` does not know of them yet."""
    half_done = read_days(store).filter(pl.col("events_content").is_null())["event_date"].to_list()
    if not half_done:
        return []
    tables = (events_table(site.source.context), REJECTED)
    rows = [
        store.scan(t).filter(pl.col("event_date").is_in(half_done), pl.col("source_file").is_in(paths)) for t in tables
    ]
    return pl.concat([part.select("event_date").unique() for part in rows]).collect()["event_date"].to_list()


def other_files(known: pl.DataFrame, changed: pl.DataFrame, gone: pl.DataFrame, touched: list[date]) -> pl.DataFrame:
    """The remaining files that hold rows of touched days; they are read again."""
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
    return others


def publish_days(
    site: PipelineSite,
    store: Store,
    aside: Path,
    touched: list[date],
    num_rows: int,
    users: pl.Series,
    bases: dict[str, int],
) -> int:
    """Finish every bucket, then make the touched days visible in `events` and `rejected`; return the version of `days`.

    Raises ContractError, before anything is visible, if an outcome is missing for any of the `num_rows` rows read, and
    RetryableError if another user is to be forgotten than the `users` that were known when the rows were read.
    """
    run = uuid.uuid4().hex
    table = events_table(site.source.context)
    events: list[StagedFile] = []
    refused: list[StagedFile] = []
    for bucket in track(range(site.buckets), "writing events"):
        candidates = read_aside(aside / f"candidates-{bucket}")
        if candidates.is_empty():
            continue
        judged, found, duplicates = judge(candidates, site)
        accepted, bots = part_forgotten(judged, found, users)
        events += store.stage(table, accepted.with_columns(ingested_run=pl.lit(run)))
        refused += store.stage(REJECTED, bots.with_columns(ingested_run=pl.lit(run)))
        lay_aside(outcomes(accepted, bots, duplicates), aside / "outcomes")
        lay_aside(accepted.select("event_date", "event_id"), aside / "ids")
    early = read_aside(aside / "rejected")
    if not early.is_empty():
        refused += store.stage(REJECTED, early.with_columns(ingested_run=pl.lit(run)))
        lay_aside(outcome(early, "rejected"), aside / "outcomes")
    num_outcomes = counts_by_file(aside)["rows_read"].sum()
    if num_outcomes != num_rows:
        raise ContractError(
            f"{num_rows} rows were read but {num_outcomes} are accounted for as events, rejected or duplicates. "
            "Nothing was published; this is a fault of nightjar, please report it"
        )
    if (store.version(FORGOTTEN) or 0) != bases[FORGOTTEN.name]:
        raise RetryableError("a user was forgotten while raw files were read. Nothing was published; run ingest again")
    # From here on the touched days are in change: no verdict about them holds, should this process die.
    in_change = pl.DataFrame({"event_date": touched}).with_columns(events_content=pl.lit(None, pl.String))
    version = update_days(store, in_change, bases[DAYS.name])
    store.commit(table, events, {"event_date": touched}, {"ingested_run": run}, bases[table.name])
    store.commit(REJECTED, refused, {"event_date": touched}, {"ingested_run": run}, bases[REJECTED.name])
    return version


def judge(candidates: pl.DataFrame, site: PipelineSite) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Split a bucket's candidates into events, rows of bots, and exact duplicates."""
    ordered = candidates.sort("delivery_date", "source_file", "record")
    is_first = pl.int_range(pl.len()).over("event_id") == 0
    unique, duplicates = ordered.filter(is_first), ordered.filter(~is_first)
    if site.source.max_events_per_day is None:
        return unique, unique.clear().with_columns(reason=pl.lit("bot"), fields=pl.lit("")), duplicates
    is_bot = pl.len().over("visitor", "event_date") > site.source.max_events_per_day
    told = [name for name in unique.columns if name not in ("event_id", "user_bucket", "source_file", "record")]
    bots = unique.filter(is_bot).with_columns(reason=pl.lit("bot"), fields=pl.struct(told).struct.json_encode())
    return unique.filter(~is_bot), bots, duplicates


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
    bases: dict[str, int],
) -> None:
    """Record in `files` what each file held, and in `days` what each touched day is now made of."""
    counts = counts_by_file(aside)
    read = pl.concat([changed, others])
    replaced = known.join(pl.concat([read, gone]), on="path", how="semi").filter(pl.col("event_date").is_in(touched))
    kept = known.join(replaced, on=["path", "event_date"], how="anti")
    told = pl.concat([counts.select("path"), kept.select("path")])
    empty = read.join(told, on="path", how="anti").with_columns(  # a file without rows was delivered all the same
        event_date="delivery_date", **dict.fromkeys(COUNTS, pl.lit(0, pl.Int64))
    )
    booked = pl.concat([read.join(counts, on="path"), empty], how="diagonal_relaxed")
    rows = pl.concat([kept, booked.select(kept.columns)])
    deliveries = sorted({*read["delivery_date"], *replaced["delivery_date"]})
    update_days(store, day_facts(rows, aside, touched), bases[DAYS.name])
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


def day_facts(files: pl.DataFrame, aside: Path, touched: list[date]) -> pl.DataFrame:
    """What each touched day is made of: a digest of its events, and counts over all files."""
    ids = read_aside(aside / "ids")
    empty = pl.DataFrame(schema={"event_date": pl.Date, "events_content": pl.String})
    digests = ids.group_by("event_date").agg(events_content=content_digest(pl.col("event_id"))) if ids.width else empty
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
    """What became of the rows of a delivery day."""
    files = store.scan(FILES).filter(pl.col("delivery_date") == day).collect()
    total = files.select(pl.col(COUNTS).sum()).row(0, named=True)
    reasons = (
        store.scan(REJECTED)
        .filter(
            pl.col("event_date").is_in(files["event_date"].unique().to_list()),
            pl.col("source_file").is_in(files["path"].unique().to_list()),
        )
        .group_by("reason")
        .agg(n=pl.len())
        .sort("reason")
        .collect()
    )
    return {"files": files["path"].n_unique(), **total, "rejected": dict(reasons.iter_rows())}
