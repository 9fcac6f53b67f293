"""What the endpoint is asked and what it answers, for validation and for the OpenAPI description."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

MOST_EVENTS = 200
"""Of a session: as many as `sessions.max_events` lets one have by default."""
MOST_ITEMS = 100
LONGEST_ID = 512
LONGEST_QUERY = 200

Id = Annotated[str, Field(min_length=1, max_length=LONGEST_ID)]
Number = Annotated[int, Field(ge=1, le=MOST_ITEMS)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Asked(BaseModel):
    """Fields that nobody reads are mistakes, and are told."""

    model_config = ConfigDict(extra="forbid")


class EventIn(Asked):
    """One thing that the visitor did."""

    item_id: Id
    occurred_at: AwareDatetime | None = Field(default=None, description="With a zone; left out: it happens now.")
    event_type: Id | None = Field(default=None, description="As the site file maps it: view, cart, purchase.")


class RecommendIn(Asked):
    """A session in progress."""

    items: list[EventIn] = Field(default_factory=list, max_length=MOST_EVENTS, description="Oldest first.")
    user_id: Id | None = Field(default=None, description="As in the log; what the user did before counts, too.")
    channel: Id | None = Field(default=None, description="Whose rules hold; left out: the site's first channel.")
    n: Number | None = Field(default=None, description="Length of the list; left out: the channel's.")
    explain: bool = Field(default=False, description="Say why, at the price of a pass for each event.")
    model: Version | None = Field(default=None, description="A version that /models lists; left out: what serves.")


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
    items: list[ListedItem]
    intents: Intents | None = None


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
