"""SHA-256 of files, streamed: a file that was damaged, cut or exchanged is told before anything of it is used."""

import hashlib
from pathlib import Path

import fsspec
from polars.exceptions import PanicException, PolarsError

from pipeline.errors import ConfigurationError

DAMAGED_PARQUET = (PolarsError, PanicException)
"""What polars raises for a damaged Parquet file; a panic, as for one shorter than Delta says, is no Exception."""


def sha256_of(address: str | Path) -> str:
    """The hex digest of a file, on disk or in an object store; OSError where it cannot be read."""
    with fsspec.open(str(address), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(file: Path, expected: str) -> None:
    """Raise ConfigurationError for a file that is missing, or whose content is not the one that was written."""
    try:
        found = sha256_of(file)
    except OSError as error:
        raise ConfigurationError(f"{file} is missing or cannot be read ({error.strerror or error})") from error
    if found != expected:
        raise ConfigurationError(
            f"{file} is damaged or was exchanged: its sha256 is {found[:12]}…, the recorded one {expected[:12]}…"
        )
