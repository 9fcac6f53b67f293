"""What the endpoint is asked and what it answers, for validation and for the OpenAPI description."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from serving_export.request import Event

MOST_EVENTS = 200
"""Of a session: as many as `sessions.max_events` lets one have by default."""
MOST_ITEMS = 100
LONGEST_ID = 512
LONGEST_QUERY = 200

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]


def no_text(told: Any) -> Any:
    """A number as it is; raises ValueError for what pydantic would take for one."""
    if isinstance(told, str | bool):
        raise ValueError("write a whole number")
    return told


Number = Annotated[int, Field(ge=1, le=MOST_ITEMS), BeforeValidator(no_text)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(no_text)]


ITEMS = "Oldest first: ids, or events with what is known of them."


class Asked(BaseModel):
    """Fields that nobody reads are mistakes, and are told."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def check_number(cls, told: Any) -> Any:
        """More fields than there are get one message, not one each: thousands take seconds to write."""
        if isinstance(told, dict) and len(told) > len(cls.model_fields):
            unknown = next(name for name in told if name not in cls.known_names())
            raise ValueError(f"{len(told):,} fields, of which there are {len(cls.model_fields)}: no {unknown[:50]!r}")
        return told

    @classmethod
    def known_names(cls) -> set[str]:
        """What the fields are called in JSON."""
        return {field.alias or name for name, field in cls.model_fields.items()}


class EventIn(Asked):
    """One thing that the visitor did; columns of the site's context stand beside these fields."""

    item_id: Id
    occurred_at: datetime | None = Field(
        default=None,
        description="Without a zone: the site's. Left out: with the event before; in the whole session: now.",
    )
    event_type: Id | None = Field(default=None, description="As the site file maps it: view, cart, purchase.")

    def event(self, context: Sequence[str], time_zone: str) -> Event:
        """The same for the model."""
        at = self.occurred_at
        told = {name: getattr(self, field_of(place)) for place, name in enumerate(context)}
        return Event(
            self.item_id,
            at.replace(tzinfo=ZoneInfo(time_zone)) if at is not None and at.tzinfo is None else at,
            self.event_type,
            {name: value for name, value in told.items() if value is not None},
        )


class RecommendIn(Asked):
    """A session in progress."""

    items: list[EventIn | Id] = Field(default_factory=list, max_length=MOST_EVENTS, description=ITEMS)
    user_id: Id | None = Field(default=None, description="As in the log; what the user did before counts, too.")
    channel: Id | None = Field(default=None, description="Whose rules hold; left out: the site's first channel.")
    n: Number | None = Field(default=None, description="Length of the list; left out: the channel's.")
    explain: bool = Field(default=False, strict=True, description="Say why, at the price of a pass for each event.")
    model: Version | None = Field(default=None, description="A version that /models lists; left out: what serves.")


def request_model(context: Sequence[str]) -> type[RecommendIn]:
    """What `POST /recommend` takes at a site whose events have these columns of context."""
    columns: dict[str, Any] = {
        field_of(place): (Id | None, Field(default=None, alias=name)) for place, name in enumerate(context)
    }
    event = create_model("EventIn", __base__=EventIn, __doc__=EventIn.__doc__, **columns)
    items: Any = (list[event | Id], Field(default_factory=list, max_length=MOST_EVENTS, description=ITEMS))  # type: ignore[valid-type]
    return create_model("RecommendIn", __base__=RecommendIn, __doc__=RecommendIn.__doc__, items=items)


def field_of(place: int) -> str:
    """The name in Python of a column of context, whatever it is called."""
    return f"context_{place}"


class Because(BaseModel):
    """The one reason to tell a person."""

    item_id: str
    text: str


class Reason(BaseModel):
    """What an event does to an item's score."""

    event: int = Field(description="Its place, from 0.")
    of: Literal["session", "history"]
    item_id: str
    influence: float = Field(description="Signed: what the score would lose without it.")


class Item(BaseModel):
    """An item, as far as the catalogue knows it."""

    item_id: str
    title: str | None = None
    category: str | None = None
    price: float | None = None


class Attention(BaseModel):
    """How much a model looks at an event."""

    event: int
    of: Literal["session", "history"]
    item_id: str
    weight: float


class ListedItem(Item):
    """An item of a list."""

    rank: int
    score: float
    source: str = Field(description="model, cold (an item that it has not learnt), popular or rule.")
    because: Because | None = None
    reasons: list[Reason] | None = None


class Probability(BaseModel):
    """A class of an intent."""

    value: str
    probability: float


Intents = dict[str, list[Probability]]


class Answer(BaseModel):
    """A list for now."""

    source: Literal["model", "popular"]
    note: str | None = Field(default=None, description="What the reader should know, as a sentence.")
    model_version: int | None = None
    release: int | None = Field(default=None, description="The version of the exported lists beside it.")
    num_items: int
    num_unknown: int = Field(description="Of the session's items those that the model does not know.")
    num_history: int = Field(default=0, description="Earlier events of the user that were at hand.")
    num_left_out: int = Field(default=0, description="Events older than the newest that are read.")
    num_backward: int = Field(default=0, description="Events that say they happened before the one before them.")
    items: list[ListedItem]
    intents: Intents | None = None
    intent_weights: dict[str, float] | None = Field(
        default=None, description="How much each intent weighs in the model: a diagnostic, they are no causes."
    )
    attention: list[Attention] | None = Field(
        default=None, description="How much the model looks at each event: a diagnostic, they are no causes."
    )


class ExportedList(BaseModel):
    """Last night's list of a user in a channel."""

    channel: str
    items: list[ListedItem]


class ExportedLists(BaseModel):
    """Last night's lists of a user."""

    user_id: str
    source: Literal["export", "popular"]
    note: str | None = None
    release: int
    model_version: str | None = None
    data_through: str | None = None
    is_expired: bool
    lists: list[ExportedList]


class PastEvent(Item):
    """Something that a user did."""

    occurred_at: datetime | None = None
    event_type: str | None = None


class History(BaseModel):
    """What a user did lately, oldest first."""

    user_id: str
    num_events: int
    items: list[PastEvent]


class User(BaseModel):
    """Somebody with a list."""

    user_id: str


class Users(BaseModel):
    """Some users with lists."""

    users: list[User]
    note: str | None = None


class UserIntents(BaseModel):
    """What a user's next event is for, as of last night."""

    user_id: str
    intents: Intents
    note: str | None = None


class Found(BaseModel):
    """Items that a search found."""

    items: list[Item]


class Related(BaseModel):
    """What goes with an item."""

    item_id: str
    items: list[ListedItem]


class Popular(BaseModel):
    """What is shown to who is not known."""

    channel: str
    items: list[ListedItem]


class ModelVersion(BaseModel):
    """A version that can be asked."""

    model_version: int
    recipe: str
    data_through: str
    kind: str
    is_serving: bool


class Models(BaseModel):
    """The versions that can be asked, the newest first."""

    models: list[ModelVersion]


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """What is served."""

    status: Literal["ready"]
    site: str
    model_version: int | None
    release: int | None
    data_through: str | None
    channels: list[str]
    refused: str | None = Field(description="Why what is newer does not serve; null where nothing is.")


class Fault(BaseModel):
    """What happened, to which thing, and what to do."""

    detail: str | list[Any]
