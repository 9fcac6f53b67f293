"""Days of a site: from midnight to midnight in the site's zone."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

ONE_DAY = timedelta(days=1)
FIRST_DAY, LAST_DAY = date(1900, 1, 1), date(2199, 12, 31)
"""Commands take the days between: with any window before or after them they stay within what Python and polars know."""


def day_start(day: date, time_zone: str) -> datetime:
    """The instant (UTC) at which a day begins."""
    return datetime.combine(day, time(), ZoneInfo(time_zone)).astimezone(UTC)


def day_end(day: date, time_zone: str) -> datetime:
    """The instant (UTC) at which the next day begins."""
    return day_start(day + ONE_DAY, time_zone)


def days_between(first: date, last: date) -> list[date]:
    """All days from first to last, both included."""
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]
