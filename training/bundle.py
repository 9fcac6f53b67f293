"""A trained model as files: weights, vocabulary, and facts. No pickle anywhere.

bundle.json             recipe, data_through, as_of, vocabulary digest, and the sha256 of each of the other files
vocabulary.parquet      item_code, item_id, num_events; what is described of items
definitions.json        what the model reads of an event beside its item; only of models that do
weights.safetensors     the model's state

The sha256 of bundle.json is kept where the bundle cannot change it (in MLflow, as the tag `bundle_sha256`), so that no
file can be damaged, cut, removed or taken from another version without notice. Files that bundle.json does not name are
not read. Bundles of before have no checksums: of these only the item ids are checked, by the vocabulary digest.
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

from features.intents import Definitions
from features.vocabulary import Vocabulary
from pipeline.checksums import DAMAGED_PARQUET, check_sha256, sha256_of
from pipeline.errors import ConfigurationError
from training.baselines import BASELINES
from training.models import MODELS
from training.models.base import Recommender, SessionModel
from training.models.context import Context
from training.models.ensemble import Ensemble
from training.models.item_features import ItemFeatures
from training.models.prior import WithPrior
from training.models.surge import WithSurge
from training.recipes import EnsembleRecipe, Recipe, SequenceRecipe

FACTS, ITEMS, WEIGHTS = "bundle.json", "vocabulary.parquet", "weights.safetensors"
DEFINITIONS = "definitions.json"
SHA256 = "bundle_sha256"
"""Under which MLflow keeps the sha256 of bundle.json: a tag of the version, and metadata of the logged model."""


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
    sha256: str | None = None
    """Of the bundle.json that it was loaded from; None for a bundle without checksums, or not saved yet."""


def build_for(recipe: Recipe, vocabulary: Vocabulary) -> Recommender:
    """The untrained recommender of a recipe for the items of a vocabulary, with what is described of them."""
    recommender = build(recipe, vocabulary.num_codes, vocabulary.definitions)
    if isinstance(recommender, SessionModel):
        recommender.describe_items(vocabulary.described())
    return recommender


def build(recipe: Recipe, num_codes: int, definitions: Definitions | None = None) -> Recommender:
    """The untrained recommender of a recipe; its weights are drawn from the recipe's seed."""
    if isinstance(recipe, EnsembleRecipe):
        return build_ensemble(recipe, num_codes, definitions)
    torch.manual_seed(recipe.seed)
    if not isinstance(recipe, SequenceRecipe):
        baseline: Recommender = BASELINES[type(recipe)](num_codes, recipe)
        return baseline
    if recipe.encoder not in MODELS:
        raise ConfigurationError(f"there is no encoder {recipe.encoder!r}; there are {', '.join(MODELS)}")
    model: Any = MODELS[recipe.encoder].of_recipe(recipe, num_codes, definitions)
    if recipe.context:
        context = Context(num_codes, definitions or Definitions(), recipe.context)
        if context.width:  # else the window told nothing of it
            model.read_context(context)
    if recipe.cold_items is not None:
        features = ItemFeatures(num_codes, definitions or Definitions(), recipe.hidden_size + 1)
        if features.tables:  # else the catalogue told nothing
            model.read_features(features)
    if recipe.prior_half_life is not None:
        model = WithPrior(model, num_codes, recipe.prior_half_life)
    if recipe.surge_half_life is not None:
        model = WithSurge(model, num_codes, recipe.surge_half_life, recipe.surge_weight)
    return model


def build_ensemble(recipe: EnsembleRecipe, num_codes: int, definitions: Definitions | None) -> Ensemble:
    """The untrained members of an ensemble, side by side."""
    members: dict[str, Any] = {name: build(each, num_codes, definitions) for name, each in recipe.seeded.items()}
    of_users = {name for name, each in recipe.recipes.items() if each.sequence == "user"}
    return Ensemble(members, recipe.members, of_users)


def save_bundle(bundle: Bundle, folder: Path) -> str:
    """Write a bundle into an empty folder; return the sha256 of its bundle.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in bundle.recommender.state_dict().items()}, folder / WEIGHTS)
    bundle.vocabulary.items.write_parquet(folder / ITEMS)
    if bundle.vocabulary.definitions is not None:
        (folder / DEFINITIONS).write_text(bundle.vocabulary.definitions.model_dump_json(indent=2))
    facts = {
        "recipe_name": bundle.recipe_name,
        "recipe": TypeAdapter(Recipe).dump_python(bundle.recipe, mode="json"),
        "data_through": bundle.data_through.isoformat(),
        "as_of": bundle.as_of,
        "vocabulary_digest": bundle.vocabulary.digest(),
        "files": {file.name: sha256_of(file) for file in sorted(folder.iterdir())},
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2))
    return sha256_of(folder / FACTS)


def load_bundle(folder: Path, sha256: str | None = None) -> Bundle:
    """Read a bundle, ready to recommend; `sha256` is the one that its bundle.json must have, None if not recorded.

    Raises ConfigurationError for a damaged file and for parts that do not belong together.
    """
    if sha256 is not None:
        check_sha256(folder / FACTS, sha256)
    try:
        facts = json.loads((folder / FACTS).read_text())
        files = facts.get("files", {})
        for name, expected in files.items():
            check_sha256(folder / name, expected)
        has_definitions = DEFINITIONS in files if files else (folder / DEFINITIONS).exists()
        definitions = None
        if has_definitions:
            definitions = Definitions.model_validate_json((folder / DEFINITIONS).read_text())
        vocabulary = Vocabulary(pl.read_parquet(folder / ITEMS), definitions)
        known_digest, recipe_name = facts["vocabulary_digest"], facts["recipe_name"]
        recipe: Recipe = TypeAdapter(Recipe).validate_python(facts["recipe"])
        last_day, as_of = date.fromisoformat(facts["data_through"]), int(facts["as_of"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, *DAMAGED_PARQUET) as error:
        raise ConfigurationError(f"cannot read the model in {folder}: {' '.join(str(error).split())[:200]}") from error
    if vocabulary.digest() != known_digest:
        raise ConfigurationError(f"{folder / ITEMS} is not the vocabulary that the model was trained with; train again")
    recommender = build_for(recipe, vocabulary)
    load_weights(recommender, folder / WEIGHTS)
    own_sha256 = sha256_of(folder / FACTS) if files else None
    return Bundle(recommender.eval(), vocabulary, recipe_name, recipe, last_day, as_of, own_sha256)


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
    """A recipe's fields as MLflow parameters; of an ensemble's members those that are not their defaults."""
    if isinstance(recipe, EnsembleRecipe):
        members = {name: each.model_dump(mode="json", exclude_defaults=True) for name, each in recipe.recipes.items()}
        own = recipe.model_dump(mode="json", exclude={"recipes"})
        of_members = {f"{name}.{field}": value for name, told in members.items() for field, value in told.items()}
        return {name: str(value) for name, value in (own | of_members).items()}
    return {name: str(value) for name, value in recipe.model_dump(mode="json").items()}


def recipe_digest(recipe: Recipe) -> str:
    """Equal for recipes that are equal in every field."""
    told = f"{recipe.kind} {json.dumps(describe_recipe(recipe), sort_keys=True)}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]
