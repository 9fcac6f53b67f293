"""Durations as people write them: 90s, 30m, 24h, 7d."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
LONGEST = timedelta(days=100_000)
"""Added to a day or taken from it, it leads to a year that Python knows; and it fits into 64 bits of nanoseconds."""
PART = re.compile(r"([0-9]+)([smhd])")


def parse_duration(text: object) -> object:
    """`2h30m` as a timedelta, which itself passes through. A bare number has no unit, so it is none."""
    if isinstance(text, timedelta):
        return text
    if not re.fullmatch(r"([0-9]{1,6}[smhd])+", str(text)):
        raise ValueError(f"{text!r} is no duration; write a number and a unit, like 30m, 24h, 7d or 2h30m")
    duration = timedelta(**{UNITS[unit]: int(number) for number, unit in PART.findall(str(text))})
    if duration > LONGEST:
        raise ValueError(f"{text!r} is too long; write at most {format_duration(LONGEST)}")
    return duration


def format_duration(duration: timedelta) -> str:
    """The same text form back: 90 minutes as 1h30m; fractions of a second are cut."""
    rest, parts = int(duration.total_seconds()), []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        number, rest = divmod(rest, seconds)
        parts.append(f"{number}{unit}" if number else "")
    return "".join(parts) or "0s"


Duration = Annotated[
    timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str, when_used="json")
]
