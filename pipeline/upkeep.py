"""Care for the files of a store: fewer and bigger ones, and none that nothing needs.

`compact` puts the small files of a partition together, in the table's order; readers see the same rows.
`vacuum` removes files that no version within `keep_versions_for` needs: those that a later commit replaced, and those
that a killed writer left behind. A file younger than that is never touched, so a writer at work is safe.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec
import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipeline.errors import RetryableError
from pipeline.publish import StagedFile, Store, retention
from pipeline.tables import Table

MOST_BYTES = 256 * 2**20
"""A partition with more than this is left as it is: its files are big enough, and its rows must fit into memory."""
HALF_WRITTEN = ".parquet#"
"""In the name of what a killed writer of Delta's own leaves; its vacuum does not see these."""


@dataclass(frozen=True)
class Compacted:
    """What compacting a table did."""

    table: str
    partitions: int
    files_before: int
    files_after: int


@dataclass(frozen=True)
class Vacuumed:
    """What vacuuming a table removed, or would remove."""

    table: str
    files: int
    bytes: int


def compact(store: Store, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """One file for each partition that has several; per table with any: how many files before and after.

    Raises RetryableError where a step replaced a partition meanwhile; the step goes on undisturbed.
    """
    return [asdict(compact_table(store, table)) for table in tables if crowded_partitions(store, table).height]


def compact_table(store: Store, table: Table) -> Compacted:
    """Compact one table: a commit for each value of its first partition column."""
    version = store.version(table) or 0
    crowded = crowded_partitions(store, table)
    num_after = 0
    for group in crowded.partition_by(table.partition_by[:1], maintain_order=True):
        staged: list[StagedFile] = []
        for partition in group.select(table.partition_by).iter_rows(named=True):
            is_here = pl.all_horizontal(pl.col(name) == value for name, value in partition.items())
            staged += store.stage(table, store.scan(table, version).filter(is_here).collect())
        replaced = {name: group[name].unique().to_list() for name in table.partition_by}
        store.rewrite(table, staged, replaced, version)
        num_after += len(staged)
    return Compacted(table.name, crowded.height, int(crowded["files"].sum()), num_after)


def crowded_partitions(store: Store, table: Table) -> pl.DataFrame:
    """Partitions of several files that are small together: the partition's values, `files`, `bytes`."""
    opened = store.open(table)
    if opened is None or not table.partition_by:
        return pl.DataFrame()
    names = {f"partition.{name}": name for name in table.partition_by}
    files = pl.DataFrame(opened.get_add_actions(flatten=True)).rename(names)
    partitions = files.group_by(table.partition_by).agg(files=pl.len(), bytes=pl.col("size_bytes").sum())
    return partitions.filter((pl.col("files") > 1) & (pl.col("bytes") <= MOST_BYTES)).sort(table.partition_by)


def vacuum(store: Store, *, dry_run: bool) -> list[dict[str, Any]]:
    """Remove what nothing needs, or with `dry_run` only count it; per table: files and bytes."""
    return [asdict(vacuum_table(store, name, dry_run=dry_run)) for name in table_names(store)]


def table_names(store: Store) -> list[str]:
    """All tables of a store, those of older site files too."""
    return [name for name in store.folder_names() if DeltaTable.is_deltatable(store.table_uri(name))]


def vacuum_table(store: Store, name: str, *, dry_run: bool) -> Vacuumed:
    """Vacuum one table."""
    uri = store.table_uri(name)
    files, root = fsspec.core.url_to_fs(uri)
    sizes = {path.removeprefix(f"{root}/"): found for path, found in files.find(root, detail=True).items()}
    hours = int(store.keep_versions_for.total_seconds() // 3600)
    try:
        table = DeltaTable(uri)
        unneeded = table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
        leftovers = half_written(sizes, store.keep_versions_for)
        if not dry_run:
            keep_properties(table, store.keep_versions_for)
            table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
            for path in leftovers:
                files.rm(f"{root}/{path}")
    except (DeltaError, OSError) as error:
        raise RetryableError(f"cannot vacuum {uri}: {error}. Nothing that is needed was removed; try again") from error
    gone = [sizes[path]["size"] for path in (*unneeded, *leftovers) if path in sizes]
    return Vacuumed(name, len(gone), sum(gone))


def half_written(files: dict[str, dict[str, Any]], keep_for: timedelta) -> list[str]:
    """Parts of files that writers of Delta's own left when they died, longer ago than `keep_for`."""
    oldest = datetime.now(UTC) - keep_for
    return [path for path, facts in files.items() if HALF_WRITTEN in path and modified(facts) < oldest]


def modified(facts: dict[str, Any]) -> datetime:
    """When a file was last written; local files say it in seconds, object stores as a time."""
    told = facts.get("mtime") or facts.get("LastModified") or facts.get("updated") or facts.get("last_modified")
    if isinstance(told, int | float):
        return datetime.fromtimestamp(told, UTC)
    return told if isinstance(told, datetime) else datetime.now(UTC)


def keep_properties(table: DeltaTable, keep_for: timedelta) -> None:
    """Write into the table how long its versions are kept, where the site file has changed its mind."""
    wanted = retention(keep_for)
    if {name: table.metadata().configuration.get(name) for name in wanted} != wanted:
        table.alter.set_table_properties(wanted)
