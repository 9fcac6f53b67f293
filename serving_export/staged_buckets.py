"""What an export that was killed had staged: the next one goes on from there, if it would make the same.

    export_progress/<key>/<bucket>.json     the bucket's staged files and counts, written when the bucket is done

The key is a digest of all that the lists depend on. Staged files that nobody commits go with `vacuum`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from pipeline.publish import StagedFile, Store
from pipeline.tables import Table
from serving_export.item_index import write_bytes

FOLDER = "export_progress"


@dataclass(frozen=True)
class StagedBucket:
    """A finished bucket: the files of each table, and what was counted."""

    files: dict[str, list[StagedFile]]
    counts: dict[str, int]


class Progress:
    """The finished buckets of one export."""

    def __init__(self, store: Store, depends_on: Sequence[object]) -> None:
        self.store = store
        self.key = hashlib.sha256("\n".join(map(str, depends_on)).encode()).hexdigest()[:32]

    def address(self, bucket: int) -> str:
        """Where a bucket is told of."""
        return f"{self.store.root}/{FOLDER}/{self.key}/{bucket}.json"

    def read(self, bucket: int, tables: Sequence[Table]) -> StagedBucket | None:
        """A finished bucket; None if it is not finished, or a file of it is gone or was cut."""
        try:
            with fsspec.open(self.address(bucket), "rb") as file:
                told = json.load(file)
            files = {name: [StagedFile(**facts) for facts in found] for name, found in told["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if set(files) != {table.name for table in tables}:
            return None
        is_whole = all(self.is_there(name, file) for name, staged in files.items() for file in staged)
        return StagedBucket(files, told["counts"]) if is_whole else None

    def is_there(self, table_name: str, file: StagedFile) -> bool:
        """Whether a staged file still is what was written."""
        system, path = fsspec.core.url_to_fs(f"{self.store.table_uri(table_name)}/{file.path}")
        try:
            return bool(system.size(path) == file.size)
        except OSError:
            return False

    def write(self, bucket: int, files: Mapping[str, Sequence[StagedFile]], counts: Mapping[str, int]) -> StagedBucket:
        """Tell of a finished bucket."""
        told: dict[str, Any] = {
            "files": {name: [asdict(file) for file in staged] for name, staged in files.items()},
            "counts": dict(counts),
        }
        write_bytes(self.address(bucket), json.dumps(told).encode())
        return StagedBucket({name: list(staged) for name, staged in files.items()}, dict(counts))

    def clear(self) -> None:
        """Forget all exports under way: their files are published, or will not be."""
        system, path = fsspec.core.url_to_fs(f"{self.store.root}/{FOLDER}")
        if system.exists(path):
            system.rm(path, recursive=True)
