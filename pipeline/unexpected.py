"""Exceptions that no step expected: a sentence for the user, and the traceback in a file.

The sentence never repeats the message of an exception that is not known: drivers write addresses with passwords into
it.
"""

import os
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.addresses import redacted
from pipeline.errors import (
    ConfigurationError,
    NightjarError,
    RetryableError,
    chain,
    is_disk_full,
    kind_of,
    reason_of,
)

MOST_LOG_BYTES = 10_000_000
SECONDS_TO_READ = 60.0
PANIC = "PanicException"
"""What polars and delta-rs raise for a panic of Rust; it is no `Exception`, so that few catch it by accident."""


@dataclass(frozen=True)
class Damage:
    """A file of a table that is not as it was written."""

    table: str
    path: str
    fault: str


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up, as polars does for a Parquet file that was cut short."""
    return type(error).__name__ == PANIC


def explain(error: BaseException, home: Path, store: str | None) -> NightjarError:
    """What to tell the user; `store` is the root of the tables that the command worked on, if it came that far."""
    place = getattr(error, "filename", None)
    if is_disk_full(error):
        return RetryableError(
            f"no space left on device{f', at {place}' if place else ''}. Readers keep what was published before; make "
            "room and run the step again"
        )
    if any(type(each).__module__ == "sqlite3" or "(sqlite3." in str(each) for each in chain(error)):
        return of_sqlite(error, home)
    if kind_of(error) is RetryableError:
        return RetryableError(
            f"{f'{place}: ' if place else ''}{reason_of(error)}. Run the step again once that is over"
        )
    if store is not None and may_be_damage(error) and (found := find_damage(store)):
        return ConfigurationError(
            f"the table `{found.table}` of {store} is damaged: {found.path} {found.fault}. Bring the file back from a "
            "backup, or make the table's rows again as docs/runbook.md says"
        )
    return NightjarError(f"{describe(error)}. {keep_traceback(error, home)}")


def of_sqlite(error: BaseException, home: Path) -> NightjarError:
    """A fault of a database file: MLflow's, or that of tuning."""
    text = next(str(each) for each in chain(error) if type(each).__module__ == "sqlite3" or "(sqlite3." in str(each))
    reason = text.partition("(sqlite3.")[2].partition(") ")[2].partition("\n")[0].partition("[SQL")[0] or text
    files = f"{home.resolve() / 'mlflow.db'} (or what MLFLOW_TRACKING_URI names)"
    if kind_of(error) is RetryableError:
        return RetryableError(f"SQLite says of {files}: {reason.strip()}. Run the step again once that is over")
    return ConfigurationError(
        f"SQLite says of {files}: {reason.strip()}. Bring the file back from a backup; without one move it away, and "
        "the next night trains anew"
    )


def describe(error: BaseException) -> str:
    """An exception's kind, and the line of ours that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = Path(__file__).parents[1]
    ours = [
        frame for frame in frames if Path(frame.filename).is_relative_to(folder) and "/.venv/" not in frame.filename
    ]
    where = f" in {Path(ours[-1].filename).relative_to(folder)}, line {ours[-1].lineno}" if ours else ""
    return f"unexpected {type(error).__name__}{where}"


def keep_traceback(error: BaseException, home: Path) -> str:
    """Write the traceback where only this user can read it; say where."""
    file = home.resolve() / "logs" / "errors.log"
    text = redacted("".join(traceback.format_exception(error)))
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > MOST_LOG_BYTES:
            file.replace(file.with_suffix(".log.1"))
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} process {os.getpid()}, nightjar {command}\n{text}\n")
    except OSError as fault:
        return f"The traceback could not be written to {file}: {reason_of(fault)}"
    return f"The traceback is in {file}; run the step again, and report it if it comes back"


def may_be_damage(error: BaseException) -> bool:
    """Whether an exception comes from what reads tables."""
    readers = ("polars", "deltalake", "pyarrow", "_internal")
    return any(
        is_panic(each) or isinstance(each, OSError) or type(each).__module__.split(".")[0] in readers
        for each in chain(error)
    )


def find_damage(store: str) -> Damage | None:
    """The first file of a store's tables that is gone, cut or unreadable; None if there is none, or none found in time.

    Sizes of all files are compared first, which is quick; then content is read, newest tables' files first.
    """
    import fsspec

    until = time.monotonic() + SECONDS_TO_READ
    files, root = fsspec.core.url_to_fs(store)
    found: list[tuple[str, str]] = []
    for folder in sorted(files.glob(f"{root}/*/_delta_log")):
        name = folder.rsplit("/", 2)[1]
        damage, paths = check_sizes(files, root, store, name)
        if damage is not None:
            return damage
        found += [(name, path) for path in paths]
    for name, path in found:
        if time.monotonic() > until:
            return None
        if fault := unreadable(files, f"{root}/{name}/{path}"):
            return Damage(name, path, fault)
    return None


def check_sizes(files: Any, root: str, store: str, name: str) -> tuple[Damage | None, list[str]]:
    """Whether the log of a table can be read, and its files are as long as it says; and the paths of these files."""
    from deltalake import DeltaTable

    try:
        actions = DeltaTable(f"{store}/{name}").get_add_actions(flatten=True)
    except Exception as error:  # delta-rs raises many
        return Damage(name, "_delta_log", f"cannot be read: {reason_of(error)}"), []
    facts = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
    for path, size in facts.items():
        try:
            present = files.size(f"{root}/{name}/{unquote(path)}")
        except FileNotFoundError:
            return Damage(name, path, "is missing"), []
        if present != size:
            return Damage(name, path, f"holds {present} bytes instead of {size}"), []
    return None, [unquote(path) for path in facts]


def unreadable(files: Any, path: str) -> str | None:
    """What is wrong with a Parquet file's content."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with files.open(path, "rb") as file:
            content = parquet.ParquetFile(file)
            for group in range(content.num_row_groups):
                content.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        return f"cannot be read: {reason_of(error)}"
    return None
