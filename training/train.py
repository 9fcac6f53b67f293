"""Train a recipe on the night's sequences, and test it on the night's sessions.

Reads   `sequences` and `vocabulary` of the night, `sessions` of the day
Writes  an MLflow run with parameters, losses, metrics and data; a registered version without an alias
"""

import tempfile
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow

from features.build import check_features, read_training_rows, read_vocabulary
from features.sequences import Sequences, read_sequences
from features.tables import SEQUENCES
from features.vocabulary import Vocabulary
from features.window import check_passed
from pipeline.dates import ONE_DAY, day_end
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle, build, describe_recipe, recipe_digest
from training.checkpoint import checkpoint_folder, remove_checkpoints
from training.measure import measure_bundle
from training.models.base import Recommender, SessionModel
from training.recipes import Recipe, SequenceRecipe, find_recipe
from training.settings import TrainingSite
from training.tracking import Tracking

if TYPE_CHECKING:
    from training.fit import Losses, Report


def train(site: TrainingSite, store: Store, night: date, recipe_name: str, purpose: str = "nightly") -> dict[str, Any]:
    """Fit, test and register one recipe; return its run, version and metrics. `purpose` is a tag of the run."""
    recipe = find_recipe(recipe_name, site.training)
    vocabulary, rows = read_vocabulary(store, night), read_training_rows(store, night)
    digest = check_features(site, store, night)
    check_passed(site, store, night)
    tracking = Tracking(site)
    tags = {
        "recipe": recipe_name,
        "recipe_digest": recipe_digest(recipe),
        "seed": str(recipe.seed),
        "data_digest": digest,
        "kind": "train",
        "purpose": purpose,
    }
    with tracking.run(night, recipe_name, tags) as run_id:
        for name, value in describe_recipe(recipe).items():
            tracking.client.log_param(run_id, name, value)
        log_data(run_id, store, rows.height, digest)
        as_of = microseconds_at_end(site, night - ONE_DAY)
        log.info("%s: training on %d sessions, %d items", recipe_name, rows.height, vocabulary.items.height)
        folder = checkpoint_folder(site, night, tags, vocabulary)
        report = tracking.report_epochs(run_id)
        recommender, losses = make(recipe, vocabulary, read_sequences(rows), as_of, folder, report)
        bundle = Bundle(recommender, vocabulary, recipe_name, recipe, night - ONE_DAY, as_of)
        metrics = measure_bundle(site, store, bundle, night).means()
        tracking.log_metrics(run_id, metrics)
        version = tracking.register(bundle, run_id, {**tags, "night": str(night)})
        remove_checkpoints(folder)
    return {"run_id": run_id, "model_version": version, "metrics": losses | metrics}


def make(
    recipe: Recipe,
    vocabulary: Vocabulary,
    sequences: Sequences,
    as_of: int,
    folder: Path | None = None,
    report: "Report | None" = None,
) -> "tuple[Recommender, Losses]":
    """A fitted recommender and its last losses; `fit_in` tells what `folder` and `report` are."""
    recommender: Any = build(recipe, vocabulary.num_codes)
    if not isinstance(recipe, SequenceRecipe):
        recommender.fit(sequences, as_of)
        return recommender, {}
    return recommender, fit_in(recommender, sequences, recipe, recipe.epochs, folder, report)


def fit_in(
    model: SessionModel,
    sequences: Sequences,
    recipe: SequenceRecipe,
    epochs: int,
    folder: Path | None,
    report: "Report | None",
) -> "Losses":
    """Fit with checkpoints in `folder` (None: in a scratch one); `report` takes each epoch's losses."""
    from training.fit import fit  # Lightning takes seconds to import; baselines do without

    if folder is not None:
        return fit(model, sequences, recipe, epochs, folder, report)
    with tempfile.TemporaryDirectory(prefix="nightjar-fit-") as scratch:
        return fit(model, sequences, recipe, epochs, Path(scratch), report)


def log_data(run_id: str, store: Store, num_sessions: int, digest: str) -> None:
    """Say in the run which data it learnt from."""
    data = mlflow.data.meta_dataset.MetaDataset(
        mlflow.data.sources.LocalArtifactDatasetSource(store.table_uri(SEQUENCES.name)), "sequences", digest
    )
    with mlflow.start_run(run_id=run_id):
        mlflow.log_input(data, context="training")
        mlflow.log_param("num_sessions", num_sessions)
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")  # leaving start_run has called it finished


def microseconds_at_end(site: TrainingSite, day: date) -> int:
    """The end of a day, microseconds since 1970."""
    return int(day_end(day, site.time_zone).timestamp()) * 1_000_000
