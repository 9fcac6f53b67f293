"""The three ways a command can fail; each carries its exit code.

A message says what happened, to which thing, with which value, and what to do.
"""

import errno
import re
from collections.abc import Iterator

FULL = {errno.ENOSPC, errno.EDQUOT}
PASSING = FULL | {errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET}
"""Faults of a disk, a mount or a network that may pass by themselves."""
NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""How Rust and Python write the number into a message, where a library keeps the text alone."""
MOST_LETTERS = 300
SQLITE = {"database or disk is full": errno.ENOSPC, "database is locked": errno.EAGAIN, "disk i/o error": errno.EIO}
"""What SQLite says instead of a number."""


class NightjarError(Exception):
    """Something the reader of the message can act on; shown without a traceback."""

    exit_code = 1


class RetryableError(NightjarError):
    """A fault that a later try may cure (a lock held, a commit lost to a neighbour)."""

    exit_code = 1


class OvertakenError(RetryableError):
    """Another writer was faster; what this one rests on has changed."""


class ConfigurationError(NightjarError):
    """Wrong usage, configuration or input place; a retry cannot help."""

    exit_code = 2


class ContractError(NightjarError):
    """The data broke its contract; the night stops here."""

    exit_code = 3


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that it was raised from."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and not any(following is other for other in seen):
        seen.append(following)
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def error_number(error: BaseException) -> int | None:
    """The errno behind an exception, also where polars, delta-rs or SQLAlchemy wrapped it; None if there is none."""
    for each in chain(error):
        if isinstance(each, OSError) and each.errno is not None:
            return each.errno
        text = str(each)
        if found := NUMBER.search(text):
            return int(found[1] or found[2])
        for words, number in SQLITE.items():
            if words in text.lower():
                return number
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk, or somebody's share of it, was full."""
    return error_number(error) in FULL


def kind_of(error: BaseException) -> type[NightjarError]:
    """What to raise for a fault of reading or writing: RetryableError if it may pass by itself, else it will stay."""
    is_passing = error_number(error) in PASSING | {errno.EAGAIN} or any(
        isinstance(each, ConnectionError | TimeoutError) for each in chain(error)
    )
    return RetryableError if is_passing else ConfigurationError


def reason_of(error: BaseException) -> str:
    """What went wrong in one line, without colours, arrows and backtraces of the libraries."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"\x1b\[\d+m|[↳]", " ", text.partition("stack backtrace")[0])
    text = re.split(r"\n\s+0: ", text)[0]
    return " ".join(text.split())[:MOST_LETTERS].rstrip(".")
