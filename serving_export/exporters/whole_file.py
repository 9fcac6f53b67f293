"""A file that is there when it is whole, and not before."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec

from pipeline.durable import is_local, put_in_place
from pipeline.errors import kind_of, reason_of


@contextmanager
def whole_file(address: str) -> Iterator[BinaryIO]:
    """Write a file aside and move it into place at the end; what was there before stays if something fails."""
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
                files, path = fsspec.core.url_to_fs(address)
                files.put_file(name, path)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ImportError) as error:  # ImportError: the library of an object store
        if is_local(address) and isinstance(error, FileNotFoundError):
            raise  # a file of the table that is read is gone; the one that is written is open
        raise kind_of(error)(
            f"cannot write {address}: {reason_of(error)}. What was there before is unchanged"
        ) from error


def umask() -> int:
    """What this process takes from the rights of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
