"""Whole runs by name. A recipe is a function; the site file overrides single fields of what it returns."""

import difflib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.durations import Duration
from pipeline.errors import ConfigurationError
from pipeline.settings import Section
from training.batch import Order
from training.settings import Training

Decay = Literal["same", "linear", "div", "quadratic", "log"]


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


class SessionPopularityRecipe(Section):
    """What the session had most often, then what is popular."""

    kind: Literal["session_popularity"] = "session_popularity"
    seed: int = 1


class MarkovRecipe(Section):
    """What came right after the current item."""

    kind: Literal["markov"] = "markov"
    seed: int = 1


class SequentialRulesRecipe(Section):
    """What came some events after the current item."""

    kind: Literal["sequential_rules"] = "sequential_rules"
    steps: int = Field(default=10, ge=1)
    """How many events apart two items may be."""
    half_life: Duration | None = Field(default=timedelta(days=1), gt=timedelta())
    """Age at which an event counts half; without it every event of the window counts alike."""
    seed: int = 1


class ItemKnnRecipe(Section):
    """Items that share sessions with the current item."""

    kind: Literal["item_knn"] = "item_knn"
    neighbours: int = Field(default=100, ge=1)
    """Items kept for each item."""
    regularisation: float = Field(default=20.0, ge=0)
    """Added to the sessions of both items: items that met by chance stay behind."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """0.5 is the cosine, 1 the confidence of a rule."""
    seed: int = 1


class SessionKnnRecipe(Section):
    """What session-kNN methods share."""

    neighbours: int = Field(ge=1)
    """Sessions whose items are scored."""
    sample: int = Field(ge=1)
    """Most recent sessions among which neighbours are looked for."""
    remind: bool = True
    """Whether items of the session may come again; if not, they are no better than items without evidence."""
    seed: int = 1

    @model_validator(mode="after")
    def neighbours_are_sampled(self) -> Self:
        """No more neighbours than sessions to choose from."""
        if self.neighbours > self.sample:
            raise ValueError(
                f"neighbours is {self.neighbours}, but they are chosen among sample = {self.sample} sessions; "
                "raise `sample` or lower `neighbours`"
            )
        return self


class VsKnnRecipe(SessionKnnRecipe):
    """Nearest sessions, recent events of the session counting more."""

    kind: Literal["vs_knn"] = "vs_knn"
    neighbours: int = Field(default=100, ge=1)
    sample: int = Field(default=1000, ge=1)
    event_decay: Decay = "div"
    """From the last event of the session to its first."""
    neighbour_decay: Decay = "div"
    """By how many steps back the last item lies that a neighbour shares."""
    idf: float = Field(default=0.0, ge=0)
    """How much more rare items count."""


class StanRecipe(SessionKnnRecipe):
    """Nearest sessions with three exponential decays; a decay of null is off."""

    kind: Literal["stan"] = "stan"
    neighbours: int = Field(default=500, ge=1)
    sample: int = Field(default=5000, ge=1)
    event_decay: float | None = Field(default=1.02, gt=0)
    """Events of the session after which an item counts 1/e."""
    session_decay: Duration | None = Field(default=timedelta(days=5), gt=timedelta())
    """Age at which a neighbour counts 1/e."""
    item_decay: float | None = Field(default=2.05, gt=0)
    """Events of the neighbour, away from the last shared item, after which an item counts 1/e."""


Recipe = (
    SequenceRecipe
    | PopularityRecipe
    | SessionPopularityRecipe
    | MarkovRecipe
    | SequentialRulesRecipe
    | ItemKnnRecipe
    | VsKnnRecipe
    | StanRecipe
)


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
    "session_popularity": SessionPopularityRecipe,
    "markov": MarkovRecipe,
    "sequential_rules": SequentialRulesRecipe,
    "item_knn": ItemKnnRecipe,
    "vs_knn": VsKnnRecipe,
    "stan": StanRecipe,
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
        place = ".".join(map(str, (name, *fault["loc"])))
        raise ConfigurationError(f"training.recipes.{place}: {fault['msg']}") from error
