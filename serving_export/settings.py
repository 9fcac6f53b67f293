"""The serving export's own part of a site file: how unlike the days before it a day may be.

What a list is stands in training/export_settings.py, for evaluation makes lists too.
"""

from pydantic import Field

from pipeline.settings import Section
from training.settings import TrainingSite


class Drift(Section):
    """Limits of `nightjar drift` (docs/drift.md); beyond one an alert is raised, `null` raises none.

    Shifts may be so much larger than the largest of the days before.
    """

    item_shift: float | None = Field(default=0.1, ge=0)
    """Which items people act on: Jensen-Shannon distance, 0 to 1."""
    category_shift: float | None = Field(default=0.1, ge=0)
    """The same of the items' categories."""
    event_type_shift: float | None = Field(default=0.05, ge=0)
    """The same of event types."""
    session_length_shift: float | None = Field(default=0.2, ge=0)
    """Events in a session: Wasserstein distance of the logarithms, in doublings."""
    gap_shift: float | None = Field(default=0.3, ge=0)
    """Seconds between the events of a session: the same."""
    cold_event_share: float | None = Field(default=0.2, ge=0, le=1)
    """Largest share of the day's events on items that the model of its lists does not know."""
    unknown_event_share: float | None = Field(default=0.1, ge=0, le=1)
    """Largest share of the day's events on items that the side table does not describe."""
    list_overlap: float | None = Field(default=0.1, ge=0, le=1)
    """Least share of a user's list that stood in the one before, a mean over users."""


class ExportSite(TrainingSite):
    """What the serving export knows of a site."""

    drift: Drift = Drift()
