"""A file that is there when it is whole, and not before."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec

from pipeline.addresses import redacted, scheme_of, shown
from pipeline.durable import is_local, put_in_place
from pipeline.errors import kind_of, reason_of
from serving_export.addresses import misread


@contextmanager
def whole_file(address: str) -> Iterator[BinaryIO]:
    """Write a file aside and move it into place at the end; what was there before stays if something fails."""
    if not is_local(address) and shown(address) == scheme_of(address):
        raise misread(address)
    folder = Path(address).parent if is_local(address) else Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".nightjar-", suffix=".part", dir=folder)
        aside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            if is_local(address):
                aside.chmod(0o666 & ~umask())
                put_in_place(aside, Path(address))
            else:
                upload(name, address)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        if is_local(address) and isinstance(error, FileNotFoundError):
            raise  # a file of the table that is read is gone; the one that is written is open
        raise kind_of(error)(
            f"cannot write {shown(address)}: {redacted(reason_of(error), address)}. What was there before is unchanged"
        ) from None


def upload(file: str, address: str) -> None:
    """Put a local file to where an address says."""
    try:
        files, path = fsspec.core.url_to_fs(address)
        files.put_file(file, path)
    except Exception as error:  # each store's library has its own; one that is not installed is an ImportError
        raise kind_of(error)(
            f"cannot write {shown(address)}: {redacted(reason_of(error), address)}. What was there before is unchanged"
        ) from None


def umask() -> int:
    """What this process takes from the rights of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
