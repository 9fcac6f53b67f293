"""The training's part of a site file: which recipes run, what a list is, how a champion is chosen."""

import difflib
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from features.settings import DERIVED, FeaturesSite
from pipeline.durations import Duration
from pipeline.settings import Section
from training.export_settings import Export, check_export
from training.recipes import CLOCK, LearntRecipe, find_recipe

DEFAULT_RECIPES = ("gru", "popularity", "recent_popularity")


class Gate(Section):
    """When a night's challenger takes over from the champion (docs/evaluation.md)."""

    margin: float = Field(default=0.0, ge=0, lt=1)
    """The loss in the champion metric that the 95 % interval must exclude, as a share of the champion's value.

    0 asks for a gain: the interval lies above 0."""
    list_kept: float = Field(default=0.5, ge=0, le=1)
    """Least any_recall of the lists over the champion's; broken where the whole 95 % interval is below."""
    days_below_baseline: PositiveInt = 3
    """An alert is raised when the champion was below the best baseline on so many compared days in a row."""


class Training(Section):
    """What is trained each night and what wins."""

    recipes: dict[str, dict[str, Any] | None] = Field(default=dict.fromkeys(DEFAULT_RECIPES))
    """Recipe name -> overrides of its fields."""
    champion_metric: str = "all/next_mrr_at_20"
    """The metric that chooses and gates; of the protocols `all` or `warm`."""
    gate: Gate = Gate()
    refit: Literal["warm", "none"] = "warm"
    """`warm`: the champion learns one more pass through the newest day. `none`: it is exported as trained."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(1,), min_length=1)
    """Each sequence recipe is trained once with each; a recipe with a `seed` of its own keeps to that one."""
    keep_runs_for: Duration = timedelta(days=90)
    """How long a night's runs, versions and features stay after it, unless a release or champion still needs them."""
    metric_ks: tuple[PositiveInt, ...] = Field(default=(1, 5, 10, 20), min_length=1)
    """Lengths of the lists that metrics look at."""

    @model_validator(mode="after")
    def recipes_can_be_made(self) -> "Training":
        """A wrong recipe is refused when the site file is read, not when its turn comes in the night."""
        for name in self.recipes:
            find_recipe(name, self)
        return self

    @model_validator(mode="after")
    def seeds_differ(self) -> "Training":
        """A seed given twice would be the same run twice."""
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; give each seed once")
        return self

    def seeds_of(self, recipe_name: str) -> tuple[int, ...]:
        """The seeds that a recipe is trained with; baselines draw nothing, and have one run."""
        recipe = find_recipe(recipe_name, self)
        if not isinstance(recipe, LearntRecipe) or "seed" in (self.recipes.get(recipe_name) or {}):
            return (recipe.seed,)
        return self.seeds

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


class TrainingSite(FeaturesSite):
    """What training knows of a site."""

    training: Training = Training()
    export: Export = Export()

    @model_validator(mode="after")
    def context_is_known(self) -> "TrainingSite":
        """A recipe reads only what events of this site can have."""
        known = (*CLOCK, *DERIVED, *self.source.context)
        for name in self.training.recipes:
            recipe = find_recipe(name, self.training)
            for wanted in recipe.context if isinstance(recipe, LearntRecipe) else ():
                if wanted not in known:
                    near = difflib.get_close_matches(wanted, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                    raise ValueError(
                        f"training.recipes.{name}.context: no event has a {wanted!r}; {hint} A column of the log is "
                        "named in source.context first"
                    )
        return self

    @model_validator(mode="after")
    def cold_items_are_told_of(self) -> "TrainingSite":
        """Items without events can be known by a side table only."""
        columns = None if self.items is None else self.items.columns
        if columns is not None and (columns.category or columns.price):
            return self
        for name in self.training.recipes:
            recipe = find_recipe(name, self.training)
            if isinstance(recipe, LearntRecipe) and recipe.cold_items is not None:
                raise ValueError(
                    f"training.recipes.{name}.cold_items recommends items by category and price, but no column of "
                    "`items` tells these; name one in items.columns, or leave cold_items out"
                )
        return self

    @model_validator(mode="after")
    def export_fits_the_site(self) -> "TrainingSite":
        """Rules name columns and event types that this site has."""
        check_export(self.export, self)
        return self
