"""Where lists are sent: a file or a server. Its password comes from the environment and is shown nowhere."""

import os
from pathlib import PurePosixPath

from pipeline.addresses import holds_password, scheme_of, shown
from pipeline.errors import ConfigurationError


def read_address(address: str, variable: str) -> str:
    """The address that was given, or that an environment variable holds; exactly one of the two.

    Raises ConfigurationError for an address with a password on the command line, which every process can read.
    """
    if bool(address) == bool(variable):
        raise ConfigurationError("give --to ADDRESS, or --to-from VARIABLE for an address in the environment")
    if variable:
        if not variable.isidentifier():
            raise ConfigurationError(
                "--to-from takes the name of an environment variable, like RECOMMENDATIONS_URL, not an address"
            )
        found = os.environ.get(variable, "")
        if not found:
            raise ConfigurationError(f"the environment variable {variable} is empty; it should hold an address")
        return found
    if holds_password(address):
        raise ConfigurationError(
            f"{shown(address)} was given with a password, or with what looks like one, and every process of this "
            "machine can read a command line. Put the address into an environment variable and name that: "
            "--to-from VARIABLE"
        )
    return address


def kind_of(address: str) -> str:
    """The scheme of a server's address, the ending of a file's; nothing of what is neither."""
    scheme, separator, _ = address.partition("://")
    if not separator:
        return "" if holds_password(address) else ending_of(address)
    if scheme.lower() in ("postgres", "postgresql"):
        return "postgresql"
    return scheme.lower() if scheme.lower() in ("redis", "rediss") else ending_of(address)


def ending_of(path: str) -> str:
    """The ending of a file's name, in small letters."""
    return PurePosixPath(path).suffix.removeprefix(".").lower()


def misread(address: str) -> ConfigurationError:
    """The error for an address that its driver cannot read, or reads otherwise than was meant."""
    return ConfigurationError(
        f"the address {scheme_of(address)} cannot be read: it has a letter that must be escaped, or an option that its "
        "driver does not know. Write / ? # @ : and % in a user or password as %2F %3F %23 %40 %3A and %25"
    )
