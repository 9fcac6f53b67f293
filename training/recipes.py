"""Whole runs by name. A recipe is a function; the site file overrides single fields of what it returns."""

import difflib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.durations import Duration
from pipeline.errors import ConfigurationError
from pipeline.settings import Section
from training.batch import Order
from training.settings import Training


class SequenceRecipe(Section):
    """A session model: encoder x loss x order x optimiser."""

    kind: Literal["sequence"] = "sequence"
    encoder: str
    """A name in training.models.MODELS."""
    hidden_size: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the input vector that is blanked while training."""
    loss: Literal["cross_entropy"] = "cross_entropy"
    order: Order = "chronological"
    """`chronological`: the newest sessions are learnt last, which news logs reward."""
    epochs: int = Field(default=5, ge=1)
    refit_epochs: int = Field(default=1, ge=1)
    """Passes of a warm refit."""
    batch_size: int = Field(default=256, ge=1)
    """Sessions in a batch."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of Adam."""
    seed: int = 1


class PopularityRecipe(Section):
    """One list for everyone."""

    kind: Literal["popularity"] = "popularity"
    half_life: Duration | None = Field(default=None, gt=timedelta())
    """Age at which an event counts half; without it every event of the window counts alike."""
    seed: int = 1


Recipe = SequenceRecipe | PopularityRecipe


def gru() -> Recipe:
    """The plain GRU with full cross-entropy."""
    return SequenceRecipe(encoder="gru")


def lstm() -> Recipe:
    """The plain LSTM with full cross-entropy."""
    return SequenceRecipe(encoder="lstm")


def rnn() -> Recipe:
    """The plain recurrent network with full cross-entropy."""
    return SequenceRecipe(encoder="rnn")


def popularity() -> Recipe:
    """Items by their number of events in the window."""
    return PopularityRecipe()


def recent_popularity() -> Recipe:
    """Items by their number of events, recent ones counting more."""
    return PopularityRecipe(half_life=timedelta(days=1))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "gru": gru,
    "lstm": lstm,
    "rnn": rnn,
    "popularity": popularity,
    "recent_popularity": recent_popularity,
}


def find_recipe(name: str, training: Training) -> Recipe:
    """The recipe of a name with the site's overrides; raises ConfigurationError for an unknown name or field."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}"
        raise ConfigurationError(f"there is no recipe {name!r}; {hint}")
    return override(name, RECIPES[name](), training.recipes.get(name) or {})


def override(name: str, recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """A recipe with some fields changed."""
    known = type(recipe).model_fields
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(known)}"
            raise ConfigurationError(f"training.recipes.{name}.{field}: unknown field; {hint}")
    try:
        return type(recipe).model_validate(recipe.model_dump() | fields)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ConfigurationError(f"training.recipes.{name}.{place}: {fault['msg']}") from error
