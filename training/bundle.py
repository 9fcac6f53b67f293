"""A trained model as files: weights, vocabulary, and facts. No pickle anywhere.

bundle.json             recipe, data_through, as_of, vocabulary digest
vocabulary.parquet      item_code, item_id, num_events
weights.safetensors     the model's state
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from features.vocabulary import Vocabulary
from pipeline.errors import ConfigurationError
from training.baselines import BASELINES
from training.models import MODELS
from training.models.base import Recommender
from training.models.prior import WithPrior
from training.recipes import Recipe, SequenceRecipe

FACTS, ITEMS, WEIGHTS = "bundle.json", "vocabulary.parquet", "weights.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A model with the items it knows and the moment up to which it has seen data."""

    recommender: Recommender
    vocabulary: Vocabulary
    recipe_name: str
    recipe: Recipe
    data_through: date
    """The last day it has seen."""
    as_of: int
    """The end of that day, microseconds since 1970: the time that scores are made for."""


def build(recipe: Recipe, num_codes: int) -> Recommender:
    """The untrained recommender of a recipe; its weights are drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    if not isinstance(recipe, SequenceRecipe):
        baseline: Recommender = BASELINES[type(recipe)](num_codes, recipe)
        return baseline
    if recipe.encoder not in MODELS:
        raise ConfigurationError(f"there is no encoder {recipe.encoder!r}; there are {', '.join(MODELS)}")
    model = MODELS[recipe.encoder].of_recipe(recipe, num_codes)
    return model if recipe.prior_half_life is None else WithPrior(model, num_codes, recipe.prior_half_life)


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in bundle.recommender.state_dict().items()}, folder / WEIGHTS)
    bundle.vocabulary.items.write_parquet(folder / ITEMS)
    facts = {
        "recipe_name": bundle.recipe_name,
        "recipe": TypeAdapter(Recipe).dump_python(bundle.recipe, mode="json"),
        "data_through": bundle.data_through.isoformat(),
        "as_of": bundle.as_of,
        "vocabulary_digest": bundle.vocabulary.digest(),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2))


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle, ready to recommend; raises ConfigurationError if its parts do not belong together."""
    facts = json.loads((folder / FACTS).read_text())
    vocabulary = Vocabulary(pl.read_parquet(folder / ITEMS))
    if vocabulary.digest() != facts["vocabulary_digest"]:
        raise ConfigurationError(f"{folder / ITEMS} is not the vocabulary that the model was trained with; train again")
    recipe: Recipe = TypeAdapter(Recipe).validate_python(facts["recipe"])
    recommender = build(recipe, vocabulary.num_codes)
    load_weights(recommender, folder / WEIGHTS)
    return Bundle(
        recommender.eval(),
        vocabulary,
        facts["recipe_name"],
        recipe,
        date.fromisoformat(facts["data_through"]),
        facts["as_of"],
    )


def load_weights(recommender: Recommender, file: Path) -> None:
    """Fill a recommender from a file of weights; raises ConfigurationError if it holds anything else."""
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ConfigurationError(
            f"{file} holds no plain weights ({error}); a pickle could run code, so it was not opened. Train again"
        ) from error
    try:
        recommender.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigurationError(f"{file} does not fit its recipe and vocabulary: {error}. Train again") from error


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields as MLflow parameters."""
    return {name: str(value) for name, value in recipe.model_dump(mode="json").items()}


def recipe_digest(recipe: Recipe) -> str:
    """Equal for recipes that are equal in every field."""
    told = f"{recipe.kind} {json.dumps(describe_recipe(recipe), sort_keys=True)}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]
