"""Local files that outlive a power cut: content reaches the disk before a name or a commit leads readers to it.

Addresses of object stores pass through: there a put is durable once it is answered.
"""

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any


def is_local(address: str) -> bool:
    """Whether an address is a path of this machine's file systems."""
    return "://" not in address


def sync(file: IO[Any]) -> None:
    """Have the system write an open file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some mounts know no sync of folders
            raise
    finally:
        os.close(handle)


def sync_folders(root: Path, files: Iterable[str]) -> None:
    """Make the names of new files durable: `files` are paths below `root`, whose folders may be new too."""
    below = {folder for file in files for folder in Path(file).parents}
    for folder in sorted(below, key=lambda folder: len(folder.parts), reverse=True):
        sync_path(root / folder)


def put_in_place(aside: Path, target: Path) -> None:
    """Give a written file its name: whoever opens `target`, also after a power cut, finds the old or the new one."""
    sync_path(aside)
    aside.replace(target)
    sync_path(target.parent)


def write_whole(target: Path, content: bytes) -> None:
    """Write a file aside and put it in place; nothing is left aside if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(content)
        put_in_place(aside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
