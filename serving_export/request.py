"""What an answer is asked for: a session in progress, the events of its user before it, and how the list shall be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

TIME = "write a time like 2026-03-01T12:30:00Z"


class Event(NamedTuple):
    """One thing that somebody did; what is not told is missing, and models have a rule for that."""

    item_id: str
    """As in the log."""
    occurred_at: datetime | None = None
    """With a zone."""
    event_type: str | None = None
    context: Mapping[str, str] = {}
    """Columns of `source.context` by name."""

    def told(self, column: str) -> str | None:
        """What the event says in a column: `event_type`, or one of context."""
        return self.event_type if column == "event_type" else self.context.get(column)


@dataclass(frozen=True)
class Request:
    """One list that is asked for."""

    session: Sequence[Event] = ()
    """The session in progress, in the order in which it happened."""
    history: Sequence[Event] = ()
    """What the user did before it, in order of time: `read_history`."""
    channel: str | None = None
    """Whose rules hold; None: what the model says of all its items, those of the session, too."""
    top: int = 10
    """Length of the list."""
    explain: bool = False
    """Whether the answer says why, at the price of one more pass for each event."""
    user_id: str | None = field(default=None, compare=False)
    """Whose session it is; told for the one who reads the answer."""


def read_request(told: Any, time_zone: str, default: Request | None = None) -> Request:
    """A request as programs write it: a list of item ids, or what `POST /recommend` takes.

    That is {"items": [...], "user_id", "channel", "n", "explain"}, all but one of items and user_id left out at will;
    an item is an id, or {"item_id", "occurred_at", "event_type"} with columns of the context beside them. `item_ids` is
    another name of items. Times without a zone are the site's. What is left out is as in `default`. Raises ValueError
    for anything else.
    """
    fields = told if isinstance(told, dict) else {"items": told}
    known = {"items", "item_ids", "user_id", "channel", "n", "explain"}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{unknown[0]!r} is not known; there are {', '.join(sorted(known))}")
    items = fields.get("items", fields.get("item_ids", []))
    if not isinstance(items, list) or not (items or fields.get("user_id")):
        raise ValueError("items is a list of item ids, or of events with an item_id")
    default = default or Request()
    top, channel, user = (fields.get(name) for name in ("n", "channel", "user_id"))
    top = default.top if top is None else top
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"n is {top!r}; write a whole number from 1")
    return Request(
        [read_event(item, time_zone) for item in items],
        channel=default.channel if channel is None else text_of(channel, "channel"),
        top=top,
        explain=fields.get("explain", default.explain) is True,
        user_id=None if user is None else text_of(user, "user_id"),
    )


def read_event(told: Any, time_zone: str) -> Event:
    """An event of an item id, or of a dictionary with one."""
    if not isinstance(told, dict):
        return Event(text_of(told, "item_id"))
    columns = {name: value for name, value in told.items() if value is not None}
    item, at, kind = (columns.pop(name, None) for name in ("item_id", "occurred_at", "event_type"))
    return Event(
        text_of(item, "item_id"),
        None if at is None else read_time(at, time_zone),
        None if kind is None else text_of(kind, "event_type"),
        {str(name): text_of(value, str(name)) for name, value in columns.items()},
    )


def read_time(told: Any, time_zone: str) -> datetime:
    """An ISO 8601 time; without a zone it is the site's, of two instants the earlier one."""
    try:
        found = datetime.fromisoformat(told)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{told!r} is no time; {TIME}") from error
    try:
        return (found if found.tzinfo else found.replace(tzinfo=ZoneInfo(time_zone))).astimezone(UTC)
    except OverflowError as error:  # year 1 or 9999, at the wrong end of its zone
        raise ValueError(f"{told!r} is no time of a log; {TIME}") from error


def text_of(told: Any, what: str) -> str:
    """A text, or a whole number as text."""
    if isinstance(told, bool) or not isinstance(told, str | int):
        raise ValueError(f"{what} is {told!r}; write text or a whole number")
    return str(told)
