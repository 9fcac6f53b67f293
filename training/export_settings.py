"""The export's part of a site file: which lists are made, and what may be in them.

Training reads it, too: it measures the list that would be published.
"""

import difflib
from datetime import date, timedelta
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.durations import Duration
from pipeline.settings import ItemColumns, PipelineSite, Section

ITEM_COLUMNS: dict[str, type] = {
    "item_id": str,
    "title": str,
    "category": str,
    "price": float,
    "available": bool,
    "first_seen": date,
}
"""Columns of `items` that a rule may name, and what they hold."""

Op = Literal["==", "!=", "in", "not_in", "<", "<=", ">", ">=", "is_null", "not_null"]
WITHOUT_VALUE, WITH_LIST, OF_ORDER = ("is_null", "not_null"), ("in", "not_in"), ("<", "<=", ">", ">=")
Value = bool | int | float | date | str


class ItemRule(Section):
    """A condition on a column of `items`: data, never code. A missing value meets only is_null, != and not_in."""

    column: str
    op: Op
    value: Value | list[Value] | None = None
    """A list for `in` and `not_in`, nothing for `is_null` and `not_null`, else one value of the column's type."""

    @model_validator(mode="after")
    def value_fits(self) -> "ItemRule":
        """The column exists, and can be compared like this with that value."""
        kind = ITEM_COLUMNS.get(self.column)
        if kind is None:
            raise ValueError(f"items have no column {self.column!r}; {near_name(self.column, ITEM_COLUMNS)}")
        if self.op in WITHOUT_VALUE and self.value is not None:
            raise ValueError(f"{self.column} {self.op} takes no value; found {self.value!r}")
        if (self.op in WITH_LIST) != isinstance(self.value, list):
            wants = "a list of values" if self.op in WITH_LIST else "one value"
            raise ValueError(f"{self.column} {self.op} takes {wants}; found {self.value!r}")
        if self.op in OF_ORDER and kind is bool:
            raise ValueError(f"{self.column} is yes or no and knows no {self.op}; write == true or == false")
        if wrong := [v for v in self.values if not is_of(v, kind)]:
            raise ValueError(f"{self.column} holds {WORDS[kind]}, and {wrong[0]!r} is none")
        return self

    @property
    def values(self) -> list[Value]:
        """What the column is compared with."""
        if self.op in WITHOUT_VALUE:
            return []
        return self.value if isinstance(self.value, list) else [self.value]  # type: ignore[list-item]


WORDS = {str: "text", float: "numbers", bool: "yes or no", date: "days"}


def is_of(value: Any, kind: type) -> bool:
    """Whether a value of the site file can be compared with a column of that type."""
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def near_name(name: str, known: Any) -> str:
    """The nearest right name, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


class Seen(Section):
    """What happens to items that a user had before."""

    policy: Literal["exclude", "allow", "exclude_bought"] = "exclude"
    """`exclude_bought` leaves out what the user bought, and nothing else."""
    within: Duration = timedelta(days=30)
    bought: str = "purchase"
    """The event type that means so."""


class Input(Section):
    """What a model reads of a user before it fills the list."""

    last_events: int = Field(default=50, ge=1)


class ItemRules(Section):
    """Which items may stand in a list, whoever it is for."""

    available_only: bool = True
    """Leave out items that `items` says are not available; one of which it says nothing may stand."""
    allow: list[ItemRule] = Field(default_factory=list)
    """All of these must hold."""
    deny: list[ItemRule] = Field(default_factory=list)
    """None of these may hold."""


class Channel(ItemRules):
    """A list of its own for every user; what is left out is as in `export`."""

    top_n: PositiveInt | None = None
    seen: Seen | None = None
    max_per_category: PositiveInt | None = None
    """Most items of one category in a list; items without a category are not counted."""
    complements: int = Field(default=0, ge=0)
    """Of how many of a user's last items the related items come first."""
    because: Literal["last_item", "influence"] = "last_item"
    """What the column says of rows of the model: the user's last item, or the one that drew the item in most, which
    costs a pass of the model for each event (docs/reasons.md)."""


class Related(ItemRules):
    """`related_items`: what goes with an item."""

    top_n: PositiveInt = 20


class AbandonedCart(Section):
    """An item put into the cart and not bought for a time."""

    after: Duration = timedelta(hours=4)
    """The silence after which a cart counts as left."""
    cart: str = "cart"
    purchase: str = "purchase"


class ViewedAgain(Section):
    """An item that a user came back to without buying it."""

    times: int = Field(default=2, ge=2)
    """Fewest days on which the item was viewed."""
    view: str = "view"
    purchase: str = "purchase"


class Triggers(ItemRules):
    """Occasions to write to a user; each is off unless given."""

    within: Duration = timedelta(days=7)
    """Older events are no occasion."""
    top_n: PositiveInt = 10
    """Most items of one user and trigger, the newest first."""
    abandoned_cart: AbandonedCart | None = None
    viewed_again: ViewedAgain | None = None

    def names(self) -> list[str]:
        """The triggers that are on."""
        return [name for name in ("abandoned_cart", "viewed_again") if getattr(self, name) is not None]


class Checks(Section):
    """Limits of the rules that lists are held to before they are published (docs/list-qa.md)."""

    fallback_share: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a channel's rows that may be popular items, where a model serves."""
    coverage_kept: float = Field(default=0.5, ge=0)
    """Smallest number of different items in a channel, over that of the last release."""
    evenness_kept: float = Field(default=0.5, ge=0)
    """Smallest 1 - Gini of how often a channel lists its items, over that of the last release."""


class Export(Section):
    """The exported lists."""

    top_n: PositiveInt = 50
    active_within: Duration = timedelta(days=30)
    """Users with an event in this time get a list."""
    input: Input = Input()
    seen: Seen = Seen()
    channels: dict[str, Channel | None] = Field(default={"home": None}, min_length=1)
    """Name -> what is special about its lists."""
    segment_by: str | None = None
    """A context column: whoever gets popular items gets those of their own segment, the value in their last event."""
    related: Related | None = Related()
    """`null`: no such table."""
    triggers: Triggers = Triggers()
    checks: Checks = Checks()
    reasons_within: Duration = timedelta(minutes=10)
    """Time that an export spends on `because: influence`; users beyond it keep their last item, and are counted."""
    index: str = "auto"
    """`exact`, the factory string of a FAISS index (`IVF1024,Flat`, `HNSW32`), or `auto`: see docs/lists.md."""
    index_recall: float = Field(default=0.99, gt=0, le=1)
    """Least share of the exact lists that an approximate index must find; below, the search is exact."""

    @field_validator("channels")
    @classmethod
    def names_are_plain(cls, value: dict[str, Channel | None]) -> dict[str, Channel | None]:
        """Readers write a channel's name into file names and queries."""
        for name in value:
            if not (name[:1].isascii() and name[:1].islower() and name.replace("_", "a").isalnum() and len(name) <= 40):
                raise ValueError(f"{name!r} is no name for a channel: a lower-case letter, then letters, digits and _")
        return value

    def all_channels(self) -> dict[str, Channel]:
        """Every channel by name, in order of their names, with what it takes over from `export` filled in."""
        told = {name: channel or Channel() for name, channel in sorted(self.channels.items())}
        return {
            name: channel.model_copy(update={"top_n": channel.top_n or self.top_n, "seen": channel.seen or self.seen})
            for name, channel in told.items()
        }


def check_export(export: Export, site: PipelineSite) -> None:
    """Raise ValueError where the export names what the rest of the site file does not have."""
    columns = site.items.columns if site.items else ItemColumns(item_id="item_id")
    told = {name for name, column in columns.model_dump().items() if column} | {"item_id", "first_seen"}
    channels = {f"channels.{name}": rules for name, rules in export.all_channels().items()}
    companions = {"related": export.related or Related(), "triggers": export.triggers}
    for place, rules in (channels | companions).items():
        for rule in [*rules.allow, *rules.deny]:
            if rule.column not in told:
                raise ValueError(
                    f"export.{place}: no item of this site has a {rule.column}; name its column in items.columns"
                )
        if isinstance(rules, Channel) and rules.complements and export.related is None:
            raise ValueError(f"export.{place}: complements are related items, and export.related is null")
        if isinstance(rules, Channel) and rules.max_per_category and "category" not in told:
            raise ValueError(
                f"export.{place}: max_per_category needs categories; name their column in items.columns.category"
            )
    if export.segment_by is not None and export.segment_by not in site.source.context:
        hint = near_name(export.segment_by, site.source.context) if site.source.context else "it is empty"
        raise ValueError(f"export.segment_by: {export.segment_by!r} is not in source.context; {hint}")
    check_event_types(export, site)


def check_event_types(export: Export, site: PipelineSite) -> None:
    """Raise ValueError where a rule waits for an event type that the site does not have."""
    known = site.source.event_type.known
    seen = {"seen": export.seen} | {f"channels.{name}.seen": c.seen for name, c in export.all_channels().items()}
    types = {f"{place}.bought": s.bought for place, s in seen.items() if s and s.policy == "exclude_bought"}
    for name in ("abandoned_cart", "viewed_again"):
        trigger = getattr(export.triggers, name)
        types |= {f"triggers.{name}.{k}": v for k, v in (trigger.model_dump() if trigger else {}).items()}
    for place, kind in types.items():
        if known is not None and isinstance(kind, str) and kind not in known:
            raise ValueError(
                f"export.{place} is {kind!r}, an event type that this site does not have; {near_name(kind, known)}"
            )
