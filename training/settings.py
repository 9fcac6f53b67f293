"""The training's part of a site file: which recipes run, what a list is, how a champion is chosen."""

import difflib
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from features.settings import FeaturesSite
from pipeline.durations import Duration
from pipeline.settings import Section
from training.recipes import find_recipe

DEFAULT_RECIPES = ("gru", "popularity", "recent_popularity")


class Training(Section):
    """What is trained each night and what wins."""

    recipes: dict[str, dict[str, Any] | None] = Field(default=dict.fromkeys(DEFAULT_RECIPES))
    """Recipe name -> overrides of its fields."""
    champion_metric: str = "all/next_mrr_at_20"
    """The metric that chooses and gates; of the protocols `all` or `warm`."""
    refit: Literal["warm", "none"] = "warm"
    """`warm`: the champion learns one more pass through the newest day. `none`: it is exported as trained."""
    metric_ks: tuple[PositiveInt, ...] = Field(default=(1, 5, 10, 20), min_length=1)
    """Lengths of the lists that metrics look at."""

    @model_validator(mode="after")
    def recipes_can_be_made(self) -> "Training":
        """A wrong recipe is refused when the site file is read, not when its turn comes in the night."""
        for name in self.recipes:
            find_recipe(name, self)
        return self

    @model_validator(mode="after")
    def champion_metric_is_measured(self) -> "Training":
        """The gate needs a metric that is measured for every target."""
        known = [
            f"{protocol}/next_{name}_at_{k}"
            for protocol in ("all", "warm")
            for name in ("mrr", "recall", "ndcg")
            for k in self.metric_ks
        ]
        if self.champion_metric not in known:
            near = difflib.get_close_matches(self.champion_metric, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"champion_metric is {self.champion_metric!r}, which is not measured; {hint}")
        return self


class Seen(Section):
    """What happens to items that a user had before."""

    policy: Literal["exclude", "allow"] = "exclude"
    within: Duration = timedelta(days=30)


class Input(Section):
    """What a model reads of a user before it fills the list."""

    last_events: int = Field(default=50, ge=1)


class Checks(Section):
    """Limits of the rules that lists are held to before they are published (docs/list-qa.md)."""

    fallback_share: float = Field(default=0.5, ge=0, le=1)
    """Largest share of a channel's rows that may be popular items, where a model serves."""
    coverage_kept: float = Field(default=0.5, ge=0)
    """Smallest number of different items in a channel, over that of the last release."""
    evenness_kept: float = Field(default=0.5, ge=0)
    """Smallest 1 - Gini of how often a channel lists its items, over that of the last release."""


class Export(Section):
    """The exported list; training needs it to measure the list that would be published."""

    top_n: int = Field(default=50, ge=1)
    active_within: Duration = timedelta(days=30)
    """Users with an event in this time get a list."""
    input: Input = Input()
    seen: Seen = Seen()
    checks: Checks = Checks()

    def all_channels(self) -> dict[str, "Export"]:
        """Every channel by name."""
        return {"home": self}


class TrainingSite(FeaturesSite):
    """What training knows of a site."""

    training: Training = Training()
    export: Export = Export()
