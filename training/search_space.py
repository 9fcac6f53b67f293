"""What `nightjar tune` tries of each recipe: fields, and the values that they may take.

Fields that are not here stay as the recipe and the site file say; `epochs` follow from the held-out day itself. What a
site has now is always among the values, so that a study begins with the recipe as it is.
"""

from typing import Annotated, Any, Literal

import optuna
from pydantic import Field, TypeAdapter

from pipeline.errors import ConfigurationError
from pipeline.settings import Section
from training.recipes import Recipe, override

Value = None | bool | int | float | str


class Among(Section):
    """One of some values, as the site file writes them."""

    kind: Literal["among"] = "among"
    values: tuple[Value, ...]

    def suggest(self, trial: optuna.Trial, field: str) -> Value:
        """A value to try."""
        found: Value = trial.suggest_categorical(field, self.values)
        return found

    def including(self, value: Value) -> "Among":
        """The same, and a value."""
        return Among(values=self.values if value in self.values else (*self.values, value))


class Between(Section):
    """A number between two bounds; `log`: as likely between 1 and 2 as between 10 and 20."""

    kind: Literal["between"] = "between"
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: optuna.Trial, field: str) -> Value:
        """A value to try."""
        if self.whole:
            return trial.suggest_int(field, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(field, self.low, self.high, log=self.log)

    def including(self, value: float) -> "Between":
        """The same, so wide that a value fits in."""
        return self.model_copy(update={"low": min(self.low, value), "high": max(self.high, value)})


Choice = Annotated[Among | Between, Field(discriminator="kind")]
Space = dict[str, Choice]
SPACE: TypeAdapter[Space] = TypeAdapter(Space)

SIZES: Space = {"hidden_size": Among(values=(64, 128, 256)), "dropout": Between(low=0, high=0.5)}
NOW: Space = {
    "prior_half_life": Among(values=(None, "3h", "6h", "1d")),
    "surge_half_life": Among(values=(None, "2m", "10m", "1h")),
}
BY_ADAM: Space = {
    "learning_rate": Between(low=3e-4, high=1e-2, log=True),
    "batch_size": Among(values=(64, 128, 256, 512)),
}
OF_NETWORK: Space = SIZES | NOW | BY_ADAM
BY_ADAGRAD: Space = {
    "learning_rate": Between(low=0.01, high=0.3, log=True),
    "momentum": Between(low=0, high=0.6),
    "num_negatives": Among(values=(512, 2048, 8192)),
    "negative_alpha": Between(low=0, high=1),
}
OF_TRANSFORMER: Space = OF_NETWORK | {"num_layers": Among(values=(1, 2)), "num_heads": Among(values=(1, 2, 4))}
NEIGHBOURS: Space = {"neighbours": Among(values=(50, 100, 200, 500)), "sample": Among(values=(500, 1000, 2500, 5000))}
DECAY = Among(values=("same", "linear", "div", "quadratic", "log"))

SPACES: dict[str, Space] = {
    "gru": OF_NETWORK,
    "lstm": OF_NETWORK,
    "rnn": OF_NETWORK,
    "narm": OF_NETWORK,
    "session_retriever": OF_NETWORK | {"pooling": Among(values=("mean", "gru"))},
    "sasrec": OF_TRANSFORMER,
    "intentrec": OF_TRANSFORMER
    | {
        "intent_weight": Between(low=0.02, high=1, log=True),
        "short_term_window": Among(values=("2m", "10m", "1h")),
    },
    "gru4rec": SIZES | NOW | BY_ADAGRAD | {"batch_size": Among(values=(32, 64, 128, 256))},
    "hrnn": SIZES
    | NOW
    | BY_ADAGRAD
    | {"batch_size": Among(values=(16, 32, 64)), "user_dropout": Between(low=0, high=0.8)},
    "recent_popularity": {"half_life": Among(values=("1h", "3h", "6h", "12h", "1d", "2d", "4d"))},
    "sequential_rules": {
        "steps": Between(low=1, high=20, whole=True),
        "half_life": Among(values=(None, "6h", "1d", "3d", "7d")),
    },
    "item_knn": {
        "neighbours": Among(values=(50, 100, 200, 500)),
        "regularisation": Between(low=1, high=100, log=True),
        "alpha": Between(low=0.2, high=1),
    },
    "vs_knn": NEIGHBOURS | {"event_decay": DECAY, "neighbour_decay": DECAY, "idf": Between(low=0, high=10)},
    "stan": NEIGHBOURS
    | {
        "event_decay": Between(low=0.5, high=10, log=True),
        "session_decay": Among(values=("6h", "1d", "2d", "5d", "10d")),
        "item_decay": Between(low=0.5, high=10, log=True),
    },
}
"""A recipe that is not here has nothing to choose: it is measured once, as it is."""


def space_of(recipe_name: str, recipe: Recipe) -> Space:
    """The space of a recipe, with the values that it has now, and without what its other fields do not allow.

    A decay that is off stays so.
    """
    now = present(recipe)
    found: Space = {}
    for field, choice in SPACES.get(recipe_name, {}).items():
        if isinstance(choice, Among):
            values = tuple(value for value in choice.values if is_allowed(recipe_name, recipe, field, value))
            choice = Among(values=values).including(now[field])
            if len(choice.values) > 1:
                found[field] = choice
        elif now[field] is not None and is_allowed(recipe_name, recipe, field, choice.high):
            found[field] = choice.including(now[field])
    return found


def is_allowed(recipe_name: str, recipe: Recipe, field: str, value: Value) -> bool:
    """Whether a recipe can have a value beside its other fields as they are."""
    try:
        override(recipe_name, recipe, {field: value})
    except ConfigurationError:
        return False
    return True


def present(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as a site file writes them."""
    return recipe.model_dump(mode="json")
