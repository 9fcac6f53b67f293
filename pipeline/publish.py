"""The only module that writes tables: stage files, then make them visible in one commit.

`stage` writes a Parquet file beside the table (any process, any number); nobody sees it.
`commit` swaps the staged files in for the partitions they replace: one Delta transaction, all or nothing.
A process killed in between leaves the last version whole; unseen files are left to `vacuum`.
"""

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions
from polars.exceptions import PolarsError

from pipeline.durable import is_local, sync, sync_folders, sync_path
from pipeline.errors import ConfigurationError, OvertakenError, RetryableError, kind_of, reason_of
from pipeline.privacy import check_secret, secret_digest, user_id_secret
from pipeline.settings import PipelineSite
from pipeline.tables import DAYS, SITE, Table

Partition = date | int | str
MOST_TRIES = 20
OPENED_AT_ONCE = 8
COMMITS_A_CHECKPOINT = 10  # with Delta's own 100 whoever opens a table reads up to 99 files of its log
KEEP_VERSIONS_FOR = timedelta(days=30)
ODD_LETTER = re.compile(r"""[^!-~]|["#%<>?`{}|^\\]""")  # Delta percent-encodes these, polars does not decode them


@dataclass(frozen=True)
class StagedFile:
    """A written file that no reader sees yet; plain data, so it can come from another process."""

    path: str
    size: int
    num_rows: int
    partition: dict[str, str]


class Store:
    """A site's tables; each keeps its earlier versions for `keep_versions_for`.

    Of a pinned store (`pinned`) reads without a version answer from the versions of the moment it was pinned.
    """

    def __init__(self, root: str, keep_versions_for: timedelta = KEEP_VERSIONS_FOR) -> None:
        self.root = root.rstrip("/")
        self.keep_versions_for = keep_versions_for
        self._pins: dict[str, DeltaTable] | None = None

    def pinned(self) -> "Store":
        """The store as it stands now, for all reads of one step: what others commit from now on stays out of sight.

        A table that is written through the pinned store moves on to the version that this made. The pinned versions
        belong together: whoever changes events or sessions first takes back the days' contents in `days`, so a `days`
        that is the same before and after the other tables were opened describes these. Raises RetryableError where
        writers never leave it alone for that long.
        """
        if self._pins is not None:
            return self
        copy = Store(self.root, self.keep_versions_for)
        for _ in range(MOST_TRIES):
            days = self.version(DAYS)
            names = self.folder_names()
            with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
                opened = zip(names, pool.map(self._open, names), strict=True)
                copy._pins = {name: table for name, table in opened if table is not None}
            if days == copy.version(DAYS) == self.version(DAYS):
                return copy
        raise RetryableError(f"the tables of {self.root} are changed all the time by other steps; run this one again")

    def folder_names(self) -> list[str]:
        """What lies in the store: tables, those of older site files too, and folders that are none."""
        files, root = fsspec.core.url_to_fs(self.root)
        files.invalidate_cache(root)  # object stores remember listings
        try:
            return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in files.ls(root, detail=False))
        except FileNotFoundError:
            return []

    def table_uri(self, name: str) -> str:
        """Where a table lies."""
        return f"{self.root}/{name}"

    def has(self, table: Table) -> bool:
        """Whether a table was ever committed."""
        if self._pins is not None:
            return table.name in self._pins
        return DeltaTable.is_deltatable(self.table_uri(table.name))

    def open(self, table: Table, version: int | None = None) -> DeltaTable | None:
        """A table at a version, by default the pinned or else the newest one; None before the first commit."""
        if version is None and self._pins is not None:
            return self._pins.get(table.name)
        return self._open(table.name, version)

    def _open(self, name: str, version: int | None = None) -> DeltaTable | None:
        uri = self.table_uri(name)
        try:
            return DeltaTable(uri, version=version)
        except TableNotFoundError:
            return None
        except OSError as error:
            raise RetryableError(
                f"cannot read {uri}: {reason_of(error)}. Is the store there, and are the "
                "credentials in the environment?"
            ) from error

    def version(self, table: Table) -> int | None:
        """The pinned or else the newest version of a table; None before the first commit."""
        opened = self.open(table)
        return None if opened is None else opened.version()

    def newest_version(self, table: Table) -> int | None:
        """The newest version of a table, also where the store is pinned: to see what others did meanwhile."""
        opened = self._open(table.name)
        return None if opened is None else opened.version()

    def scan(self, table: Table, version: int | None = None) -> pl.LazyFrame:
        """A table's rows in declared columns at a version, as `open` chooses it; no rows if it was never written.

        A column that was declared after that version is null.
        """
        opened = self.open(table, version)
        if opened is None:
            return table.empty().lazy()
        written = {field.name for field in opened.schema().fields}
        columns = {name: pl.col(name) if name in written else pl.lit(None).alias(name) for name in table.columns}
        return pl.scan_delta(opened).select([columns[name].cast(kind) for name, kind in table.columns.items()])

    def commits(self, table: Table) -> Iterator[dict[str, Any]]:
        """The metadata of a table's commits from its pinned or else newest version back, as far as the log reaches.

        `DeltaTable.history` begins with the newest commit, whatever version is open.
        """
        for version in range((self.version(table) or 0), -1, -1):
            try:
                with fsspec.open(f"{self.table_uri(table.name)}/_delta_log/{version:020}.json", "rb") as file:
                    actions = [json.loads(line) for line in file]
            except FileNotFoundError:
                return
            yield next((action["commitInfo"] for action in actions if "commitInfo" in action), {})

    def stage(self, table: Table, rows: pl.DataFrame, *, in_order: bool = False) -> list[StagedFile]:
        """Write rows into unseen files, one for each partition they touch; `in_order`: they are sorted already."""
        rows = rows.select([pl.col(name).cast(kind) for name, kind in table.columns.items()])
        if not table.partition_by:
            return [self._write_file(table, rows, {}, in_order)]
        parts = rows.partition_by(table.partition_by, as_dict=True, maintain_order=True, include_key=False)
        return [
            self._write_file(table, part, dict(zip(table.partition_by, map(str, values), strict=True)), in_order)
            for values, part in parts.items()
        ]

    def _write_file(self, table: Table, rows: pl.DataFrame, partition: dict[str, str], in_order: bool) -> StagedFile:
        folder = "".join(f"{column}={value}/" for column, value in partition.items())
        path = f"{folder}{uuid.uuid4().hex}.parquet"
        address = f"{self.table_uri(table.name)}/{path}"
        if table.sort_by and not in_order:
            rows = rows.sort(table.sort_by, nulls_last=True)
        try:
            if is_local(address):
                Path(address).parent.mkdir(parents=True, exist_ok=True)
            content = BytesIO()  # polars loses the system's error number when it writes into a file
            rows.write_parquet(content, compression="zstd", compression_level=1, row_group_size=16_384)
            with fsspec.open(address, "wb") as file:
                file.write(content.getbuffer())
                size = file.tell()
                if is_local(address):
                    sync(file)
        except (OSError, PolarsError, ImportError) as error:  # ImportError: the library of an object store
            remove_part(address)
            raise kind_of(error)(f"cannot write {address}: {reason_of(error)}. Is the store writable?") from error
        return StagedFile(path, size, rows.height, partition)

    def commit(
        self,
        table: Table,
        files: Iterable[StagedFile],
        replace: Mapping[str, Sequence[Partition]],
        metadata: Mapping[str, Any] | None = None,
        base: int | None = None,
        also_claim: Sequence[str] = (),
    ) -> int:
        """Swap `files` in for the partitions named by `replace`; return the table's new version.

        `replace` names partition values, like {"event_date": [day]}; an empty mapping replaces the whole table
        (allowed only for tables without partitions). `base` is the version that the rows were made from (0 before
        the first commit); `also_claim` names what else they rest on. Raises RetryableError when another writer has
        replaced one of the partitions or claimed one of the names since `base`, or, without one, at the same moment.
        """
        claimed = [*claims(table, replace), *also_claim]
        return self._swap(table, files, replace, base, claimed, commit_properties(metadata or {}, claimed))

    def append(
        self,
        table: Table,
        files: Iterable[StagedFile],
        claimed: Sequence[str],
        metadata: Mapping[str, Any] | None = None,
        base: int | None = None,
    ) -> int:
        """Add `files` to what is there; return the table's new version.

        `claimed` names what they rest on; raises RetryableError where another writer claimed one of these since `base`.
        """
        return self._swap(table, files, None, base, claimed, commit_properties(metadata or {}, claimed))

    def rewrite(
        self, table: Table, files: Iterable[StagedFile], replace: Mapping[str, Sequence[Partition]], base: int
    ) -> int:
        """Swap in `files` that hold the same rows as the partitions they replace had at version `base`.

        It claims nothing, so whoever is replacing these partitions for good goes on undisturbed; and it raises
        RetryableError, like `commit`, where they were replaced since `base`.
        """
        return self._swap(table, files, replace, base, claims(table, replace), commit_properties({}, []))

    def _swap(
        self,
        table: Table,
        files: Iterable[StagedFile],
        replace: Mapping[str, Sequence[Partition]] | None,
        base: int | None,
        names: Sequence[str],
        properties: CommitProperties,
    ) -> int:
        if replace is not None:
            check_replace(table, replace)
        uri, schema = self.table_uri(table.name), arrow_schema(table)
        files = list(files)
        newest = self._open(table.name)
        if newest is None:
            create_empty(uri, table, schema, retention(self.keep_versions_for))
            newest = DeltaTable(uri)
            sync_log(uri, [0])
        if is_local(uri):
            sync_folders(Path(uri), [file.path for file in files])
        base = newest.version() if base is None else base
        actions = [add_action(file) for file in files]
        filters = [(column, "in", [str(v) for v in values]) for column, values in (replace or {}).items()]
        for _ in range(MOST_TRIES):
            if is_overtaken(newest, uri, base, names):
                break
            try:
                newest.create_write_transaction(
                    actions,
                    "append" if replace is None else "overwrite",
                    schema,
                    list(table.partition_by) or None,
                    partition_filters=filters or None,
                    commit_properties=properties,
                )
            except CommitFailedError:
                newest = DeltaTable(uri)  # Delta cannot tell what else was replaced meanwhile; the names can
                continue
            except (DeltaError, OSError) as error:
                raise RetryableError(
                    f"cannot write the log of {uri}: {reason_of(error)}. Nothing was published there; make room, or "
                    "see whether the store is writable, and run the step again"
                ) from error
            before = newest.version()
            newest.update_incremental()
            sync_log(uri, range(before + 1, newest.version() + 1))
            if self._pins is not None:
                self._pins[table.name] = newest
            return newest.version()
        raise OvertakenError(
            f"{uri}: {' or '.join(names[:3])} was changed by another writer meanwhile. Nothing was published there; "
            "run the step again"
        )

    def stage_without(self, table: Table, version: int, leave_out: pl.Expr) -> tuple[list[StagedFile], pl.DataFrame]:
        """Stage the partitions of a version that hold rows to leave out, without these rows, a partition at a time.

        Return also what was touched: a row a partition, with the number of rows `left_out`.
        """
        rows = self.scan(table, version)
        touched = rows.filter(leave_out).group_by(table.partition_by).agg(left_out=pl.len()).collect()
        staged: list[StagedFile] = []
        for partition in touched.select(table.partition_by).iter_rows(named=True):
            is_here = pl.all_horizontal(pl.col(key) == value for key, value in partition.items())
            staged += self.stage(table, rows.filter(is_here, ~leave_out.fill_null(False)).collect())
        return staged, touched

    def stage_version(self, table: Table, version: int, leave_out: pl.Expr) -> tuple[list[StagedFile], int]:
        """Stage the rows of an earlier version but those that `leave_out` holds for; also return how many these are.

        Files of partitions without such a row are staged as they lie there. Raises ConfigurationError where the version
        cannot be read any more.
        """
        uri, keys = self.table_uri(table.name), list(table.partition_by)
        try:
            files = pl.DataFrame(DeltaTable(uri, version=version).get_add_actions(flatten=True))
            files = files.rename({f"partition.{key}": key for key in keys})
            staged, touched = self.stage_without(table, version, leave_out)
            staged += [
                StagedFile(row["path"], row["size_bytes"], row["num_records"], {key: str(row[key]) for key in keys})
                for row in files.join(touched, on=keys, how="anti").iter_rows(named=True)
            ]
        except (DeltaError, OSError, PolarsError) as error:
            raise kind_of(error)(f"cannot read version {version} of {uri}: {reason_of(error)}") from error
        return staged, int(touched["left_out"].sum())

    def replace(
        self,
        table: Table,
        rows: pl.DataFrame,
        replace: Mapping[str, Sequence[Partition]],
        metadata: Mapping[str, Any] | None = None,
        base: int | None = None,
    ) -> int:
        """Stage and commit rows that fit into memory."""
        return self.commit(table, self.stage(table, rows), replace, metadata, base)


def remove_part(address: str) -> None:
    """Take away what a failed write left of a local file; an object store shows no such part."""
    if is_local(address):
        with contextlib.suppress(OSError):
            Path(address).unlink(missing_ok=True)


def sync_log(uri: str, versions: Iterable[int]) -> None:
    """Make commits durable: delta-rs links their files into the log without a sync."""
    log = Path(uri) / "_delta_log"
    if is_local(uri):
        for path in [
            *(file for version in versions for file in log.glob(f"{version:020}.*")),
            log / "_last_checkpoint",
        ]:
            if path.exists():
                sync_path(path)
        sync_path(log)


def check_replace(table: Table, replace: Mapping[str, Sequence[Partition]]) -> None:
    """Refuse a replacement that would empty more than was meant."""
    if set(replace) - set(table.partition_by) or (table.partition_by and not replace):
        raise ValueError(f"{table.name} is replaced by {table.partition_by}, not by {sorted(replace)}")
    if any(not values for values in replace.values()):
        raise ValueError(f"no partition of {table.name} was named for replacement")


def add_action(file: StagedFile) -> AddAction:
    """A staged file as Delta's log tells it."""
    now = int(time.time() * 1000)
    return AddAction(file.path, file.size, file.partition, now, True, json.dumps({"numRecords": file.num_rows}))


def commit_properties(metadata: Mapping[str, Any], names: Sequence[str]) -> CommitProperties:
    """Metadata as text, and a fresh token for each name that the commit claims."""
    token = uuid.uuid4().int >> 65
    return CommitProperties(
        custom_metadata={key: str(value) for key, value in metadata.items()},
        app_transactions=[Transaction(name, token) for name in names],
    )


def is_overtaken(newest: DeltaTable, uri: str, base: int, names: Sequence[str]) -> bool:
    """Whether a commit since version `base` claimed one of the names, and left another token there."""
    if newest.version() == base:
        return False
    origin = DeltaTable(uri, version=base)
    return any(newest.transaction_version(name) != origin.transaction_version(name) for name in names)


def claims(table: Table, replace: Mapping[str, Sequence[Partition]]) -> list[str]:
    """Names of what a commit replaces: the values of its first partition column, or the table.

    They are Delta's application transactions: of two commits side by side with a name in common it refuses the second.
    Without them it lets both add their files to a partition that was empty before.
    """
    column = next((name for name in table.partition_by if name in replace), None)
    return [f"{column}={value}" for value in replace[column]] if column else [table.name]


def arrow_schema(table: Table) -> Schema:
    """A table's columns as Delta keeps them."""
    return Schema.from_arrow(table.empty().to_arrow(compat_level=pl.CompatLevel.oldest()).schema)


def retention(keep_versions_for: timedelta) -> dict[str, str]:
    """Delta's table properties under which an earlier version can be read and restored for so long."""
    hours = int(keep_versions_for.total_seconds() // 3600)
    return {
        "delta.deletedFileRetentionDuration": f"interval {hours} hours",
        "delta.logRetentionDuration": f"interval {2 * hours} hours",
    }


def create_empty(uri: str, table: Table, schema: Schema, properties: Mapping[str, str]) -> None:
    """A table's version 0, without rows; whoever comes second finds it there."""
    try:
        create_table_with_add_actions(
            uri,
            schema,
            [],
            "ignore",
            list(table.partition_by) or None,
            description=table.grain,
            configuration={"delta.checkpointInterval": str(COMMITS_A_CHECKPOINT), **properties},
        )
    except (DeltaError, OSError) as error:
        if not DeltaTable.is_deltatable(uri):
            raise kind_of(error)(f"cannot make the table {uri}: {reason_of(error)}. Is the store writable?") from error


def open_store(site: PipelineSite, *, must_exist: bool = False) -> Store:
    """The site's store, made at first use unless it must exist.

    Raises ConfigurationError for a store that is missing, belongs to another site, or has other buckets or another
    secret for user ids.
    """
    secret = user_id_secret(site)
    store = Store(site.resolve(site.store), site.keep_versions_for)
    if odd := ODD_LETTER.search(store.root):
        raise ConfigurationError(
            f"the path of the store, {store.root}, holds {odd[0]!r}, which polars cannot find again in a Delta table. "
            "Choose a `store` or NIGHTJAR_HOME of plain letters, digits and - _ . /"
        )
    owner = store.scan(SITE).collect()
    if owner.is_empty() and must_exist:
        raise ConfigurationError(
            f"there is no store at {store.root}. Run `nightjar run` for the site first, "
            f"or set NIGHTJAR_HOME, now {site.home.absolute()}"
        )
    if owner.is_empty():
        facts = {"name": site.name, "buckets": site.buckets, "user_id_secret": secret_digest(secret)}
        facts["marks_anonymous"] = True
        with contextlib.suppress(OvertakenError):
            store.replace(SITE, pl.DataFrame([facts], schema=dict(SITE.columns)), {}, base=0)
            return store
        owner = store.scan(SITE).collect()  # another step of the first night made the store at the same moment
    name, buckets, known_secret = owner.select("name", "buckets", "user_id_secret").row(0)
    if name != site.name:
        raise ConfigurationError(
            f"the store {store.root} was made by the site {name!r}, not by {site.name!r}. "
            "Give this site a `store` of its own"
        )
    if buckets != site.buckets:
        raise ConfigurationError(
            f"the store {store.root} was made with {buckets} buckets, the site file says {site.buckets}. "
            f"Set `buckets: {buckets}`, or make a new store"
        )
    check_secret(store.root, known_secret, secret)
    return store
