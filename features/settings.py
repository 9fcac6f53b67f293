"""The features' part of a site file: which sessions a model learns from."""

from datetime import timedelta

from pydantic import Field, field_validator

from pipeline.dates import ONE_DAY
from pipeline.durations import Duration
from pipeline.settings import PipelineSite, Section


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
