"""A file that is there when it is whole, and not before."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec

from pipeline.errors import ConfigurationError


@contextmanager
def whole_file(address: str) -> Iterator[BinaryIO]:
    """Write a file aside and move it into place at the end; what was there before stays if something fails."""
    is_local = "://" not in address
    folder = Path(address).parent if is_local else Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".nightjar-", suffix=".part", dir=folder)
        aside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if is_local:
                aside.chmod(0o666 & ~umask())
                aside.replace(address)
            else:
                files, path = fsspec.core.url_to_fs(address)
                files.put_file(name, path)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ImportError) as error:  # ImportError: the library of an object store
        raise ConfigurationError(
            f"cannot write {address}: {getattr(error, 'strerror', None) or error}. What was there before is unchanged"
        ) from error


def umask() -> int:
    """What this process takes from the rights of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
