"""What an export that was killed had staged: the next one goes on from there, if it would make the same.

    export_progress/<key>/<bucket>.json     the bucket's staged files, their sha256 and counts, once the bucket is done

The key is a digest of all that the lists depend on. A bucket is made again where its record or one of its files is not
what was written, or is another bucket's. Staged files that nobody commits go with `vacuum`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from pipeline.checksums import sha256_of
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
        """A finished bucket; None if it is not finished, or its record or a file of it is not what was written."""
        try:
            with fsspec.open(self.address(bucket), "rb") as file:
                record = json.load(file)
            if record.pop("sha256") != self.digest(bucket, record):
                return None
            files = {name: [StagedFile(**facts) for facts in staged] for name, staged in record["files"].items()}
            is_whole = set(files) == {table.name for table in tables} and record["sha256_of"] == self.digests(files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return StagedBucket(files, record["counts"]) if is_whole else None

    def digest(self, bucket: int, record: Mapping[str, Any]) -> str:
        """The sha256 of a record, for this export and bucket only."""
        return hashlib.sha256(json.dumps([self.key, bucket, record], sort_keys=True).encode()).hexdigest()

    def digests(self, files: Mapping[str, Sequence[StagedFile]]) -> dict[str, str]:
        """The sha256 of each staged file, by table and path; OSError for one that is gone."""
        return {
            f"{table}/{file.path}": sha256_of(f"{self.store.table_uri(table)}/{file.path}")
            for table, staged in files.items()
            for file in staged
        }

    def write(self, bucket: int, files: Mapping[str, Sequence[StagedFile]], counts: Mapping[str, int]) -> StagedBucket:
        """Record a finished bucket."""
        record: dict[str, Any] = {
            "files": {name: [asdict(file) for file in staged] for name, staged in files.items()},
            "sha256_of": self.digests(files),
            "counts": dict(counts),
        }
        content = json.dumps(record | {"sha256": self.digest(bucket, record)})
        write_bytes(self.address(bucket), content.encode())
        return StagedBucket({name: list(staged) for name, staged in files.items()}, dict(counts))

    def clear(self) -> None:
        """Forget all exports under way: their files are published, or will not be."""
        system, path = fsspec.core.url_to_fs(f"{self.store.root}/{FOLDER}")
        if system.exists(path):
            system.rm(path, recursive=True)
