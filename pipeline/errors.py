"""The three ways a command can fail; each carries its exit code.

A message says what happened, to which thing, with which value, and what to do.
"""


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
