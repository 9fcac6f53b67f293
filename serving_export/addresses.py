"""Where lists are sent: a file, or a server whose address may hold a password, which nothing may show."""

import os
from pathlib import PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import ConfigurationError


def read_address(address: str, variable: str) -> str:
    """The address that was given, or that an environment variable holds; exactly one of the two.

    Raises ConfigurationError for an address with a password on the command line, which every process can read.
    """
    if bool(address) == bool(variable):
        raise ConfigurationError("give --to ADDRESS, or --to-from VARIABLE for an address in the environment")
    if variable:
        found = os.environ.get(variable, "")
        if not found:
            raise ConfigurationError(f"the environment variable {variable} is empty; it should hold an address")
        return found
    if urlsplit(address).password:
        raise ConfigurationError(
            f"{without_secrets(address)} was given with a password, which every process of this machine can read. Put "
            "the address into an environment variable and name that: --to-from VARIABLE"
        )
    return address


def kind_of(address: str) -> str:
    """The scheme of a server's address, the ending of a file's."""
    scheme = urlsplit(address).scheme
    if scheme in ("postgres", "postgresql"):
        return "postgresql"
    if scheme in ("redis", "rediss"):
        return scheme
    return PurePosixPath(address).suffix.removeprefix(".").lower()


def without_secrets(address: str) -> str:
    """An address that may be shown."""
    parts = urlsplit(address)
    if not parts.netloc:
        return address
    host = parts.netloc.rsplit("@", 1)[-1]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
