"""The features' part of a site file: which sessions a model learns from, and what it may predict of an event."""

from datetime import timedelta
from typing import Self

from pydantic import Field, field_validator, model_validator

from pipeline.dates import ONE_DAY
from pipeline.durations import Duration
from pipeline.settings import PipelineSite, Section

DERIVED = ("event_type", "category", "item_age", "new_or_repeat", "price_band")
"""Properties of an event that every site can name as intents, beside its context columns."""


class Window(Section):
    """The past that a model sees."""

    length: Duration = timedelta(days=7)
    """Whole days before the test day."""
    min_item_count: int = Field(default=5, ge=1)
    """Events that an item needs in the window to enter the vocabulary."""
    min_days: int = Field(default=1, ge=1)
    """Fewest passed days in the window; with less, features refuses."""

    @field_validator("length")
    @classmethod
    def whole_days(cls, value: timedelta) -> timedelta:
        """A model learns from days that passed validation, so from whole ones."""
        if value < ONE_DAY or value % ONE_DAY:
            raise ValueError(f"a window lasts whole days, at least one, like 7d; {value} does not")
        return value


class FeaturesSite(PipelineSite):
    """What features know of a site."""

    window: Window = Window()
    intents: tuple[str, ...] = Field(default=("event_type", "category", "item_age", "new_or_repeat"), min_length=1)
    """What models of intents (`intentrec`) predict of the next event (docs/intents.md)."""

    @model_validator(mode="after")
    def intents_are_known(self) -> Self:
        """Only properties that events of this site can have, each once."""
        known = (*DERIVED, *self.source.context)
        for name in self.intents:
            if name not in known:
                raise ValueError(f"intents: there is no {name!r}; there are {', '.join(known)}")
        if len(set(self.intents)) < len(self.intents):
            raise ValueError(f"intents are {', '.join(self.intents)}; give each once")
        return self
