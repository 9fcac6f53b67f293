"""Train a recipe on the night's sequences, and test it on the night's sessions.

Reads   `sequences` and `vocabulary` of the night, `sessions` of the day
Writes  an MLflow run with parameters, losses, metrics and data; a registered version without an alias
"""

import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import polars as pl
import torch

from features.build import check_features, read_training_rows, read_vocabulary
from features.intents import learn_definitions
from features.sequences import Sequences, encode_sessions, read_sequences
from features.tables import SEQUENCES
from features.vocabulary import Vocabulary
from features.window import check_passed, sessions_until, window_days
from pipeline.catalogue import latest_items
from pipeline.code_version import code_version
from pipeline.dates import ONE_DAY, day_end
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle, build_for, describe_recipe, recipe_digest
from training.checkpoint import checkpoint_folder, remove_checkpoints
from training.cold_items import cold_quality, offer_new
from training.compare import PICTURES, recalls
from training.faithfulness import faithfulness
from training.measure import HeldOutDay, measure_bundle, read_held_out_day
from training.models.base import Recommender, SessionModel
from training.models.context import ALWAYS
from training.notes import NOTE, run_note
from training.pictures import Drawn, learning_curve
from training.recipes import EnsembleRecipe, LearntRecipe, Recipe, find_recipe, properties_read, reads_properties
from training.settings import TrainingSite
from training.tracking import Tracking
from training.units import training_units

if TYPE_CHECKING:
    from training.fit import Losses, Report


def train(
    site: TrainingSite, store: Store, night: date, recipe_name: str, seed: int, purpose: str = "nightly"
) -> dict[str, Any]:
    """Fit, test and register one recipe with one seed; return its run, version and metrics.

    `purpose` is a tag of the run; only versions of nightly runs can become champion.
    """
    store = store.pinned()
    recipe = find_recipe(recipe_name, site.training).model_copy(update={"seed": seed})
    vocabulary, rows = read_vocabulary(store, night), read_training_rows(store, night)
    digest = check_features(site, store, night)
    check_passed(site, store, night)
    tracking = Tracking(site)
    tags = {
        "recipe": recipe_name,
        "recipe_digest": recipe_digest(recipe),
        "seed": str(seed),
        "data_digest": digest,
        "kind": "train",
        "purpose": purpose,
    }
    sequences = training_units(recipe, read_sequences(rows))
    if reads_properties(recipe):
        sessions = sessions_until(site, store, window_days(site, store, night - ONE_DAY), night - ONE_DAY)
        vocabulary = define_properties(site, store, vocabulary, sessions, night - ONE_DAY, properties_read(recipe))
        sequences = training_units(recipe, encode_sessions(sessions, vocabulary).known_only())
    with tracking.run(night, run_name(recipe_name, recipe), tags) as run_id:
        days = window_days(site, store, night - ONE_DAY)
        data = describe_data(days, vocabulary, sequences) | describe_context(recipe, vocabulary)
        tracking.describe(run_id, describe_recipe(recipe) | data, surroundings(site))
        tracking.client.set_tag(run_id, NOTE, run_note(site, night, recipe_name))
        log_data(run_id, store, digest)
        as_of = microseconds_at_end(site, night - ONE_DAY)
        log.info("%s: training on %d sessions, %d items", recipe_name, sequences.num_sessions, vocabulary.items.height)
        folder = checkpoint_folder(site, night, tags, vocabulary)
        report = tracking.report_epochs(run_id)
        is_whole, started = not folder.exists(), time.monotonic()
        recommender, losses = make(recipe, vocabulary, sequences, as_of, folder, report)
        speed = describe_speed(recipe, sequences, time.monotonic() - started) if is_whole else {}
        bundle = Bundle(recommender, vocabulary, recipe_name, recipe, night - ONE_DAY, as_of)
        held_out = read_held_out_day(site, store, night)
        outcomes = measure_bundle(bundle, held_out, site.training.metric_ks)
        metrics = outcomes.numbers()
        if isinstance(recipe, LearntRecipe):
            metrics |= measure_cold_items(site, store, bundle, held_out)
            metrics |= faithfulness(bundle, encode_sessions(held_out.sessions, vocabulary).known_only())
        tracking.log_metrics(run_id, metrics | speed)
        tracking.keep_outcomes(run_id, outcomes)
        tracking.keep_pictures(run_id, draw(site, tracking.losses(run_id), recipe_name, recipe, metrics), PICTURES)
        version = tracking.register(bundle, run_id, {**tags, "night": str(night)})
        remove_checkpoints(folder)
    return {"run_id": run_id, "model_version": version, "metrics": losses | metrics, **speed}


def make(
    recipe: Recipe,
    vocabulary: Vocabulary,
    sequences: Sequences,
    as_of: int,
    folder: Path | None = None,
    report: "Report | None" = None,
) -> "tuple[Recommender, Losses]":
    """A fitted recommender and its last losses; `fit_in` tells what `folder` and `report` are."""
    recommender: Any = build_for(recipe, vocabulary)
    if not isinstance(recipe, LearntRecipe):
        recommender.fit(sequences, as_of)
        return recommender, {}
    return recommender, fit_in(recommender, sequences, recipe, folder, report)


def define_properties(
    site: TrainingSite,
    store: Store,
    vocabulary: Vocabulary,
    sessions: pl.DataFrame,
    last: date,
    read: Sequence[str] | None = None,
) -> Vocabulary:
    """The vocabulary with the properties that the sessions of a window, which ends with `last`, show; `read`: of which.

    Without `read`, of all, and which of them are predicted.
    """
    catalogue = latest_items(store, last)
    return vocabulary.describe(learn_definitions(site, sessions, catalogue, read), catalogue)


def fit_in(
    model: SessionModel,
    sequences: Sequences,
    recipe: LearntRecipe,
    folder: Path | None = None,
    report: "Report | None" = None,
    *,
    is_refit: bool = False,
) -> "Losses":
    """Fit with checkpoints in `folder` (None: in a scratch one); `report` takes each epoch's losses."""
    from training.fit import fit  # Lightning takes seconds to import; baselines do without

    if folder is None:
        with tempfile.TemporaryDirectory(prefix="nightjar-fit-") as scratch:
            return fit_in(model, sequences, recipe, Path(scratch), report, is_refit=is_refit)
    if isinstance(recipe, EnsembleRecipe):
        return fit_members(model, sequences, recipe, folder, report, is_refit=is_refit)
    epochs = recipe.refit_epochs if is_refit else recipe.epochs
    return fit(model, sequences, recipe, epochs, folder, report)


def fit_members(
    ensemble: Any,
    sequences: Sequences,
    recipe: EnsembleRecipe,
    folder: Path,
    report: "Report | None",
    *,
    is_refit: bool,
) -> "Losses":
    """Fit each member of an ensemble on its own units; losses by `member/name`."""
    found: Losses = {}

    def report_as(member: str) -> "Report | None":
        if report is None:
            return None
        return lambda epoch, losses: report(epoch, {f"{member}/{name}": loss for name, loss in losses.items()})

    for name, each in recipe.seeded.items():
        log.info("%s of the ensemble", name)
        own, place = training_units(each, sequences), folder / name
        losses = fit_in(ensemble.member(name), own, each, place, report_as(name), is_refit=is_refit)
        found |= {f"{name}/{loss}": value for loss, value in losses.items()}
    return found


def measure_cold_items(site: TrainingSite, store: Store, bundle: Bundle, held_out: HeldOutDay) -> dict[str, float]:
    """What offering the items that came lately does on the held-out day; nothing where the recipe offers none."""
    if not isinstance(bundle.recipe, LearntRecipe) or bundle.recipe.cold_items is None:
        return {}
    offered = offer_new(site, store, bundle, bundle.data_through)
    return cold_quality(bundle, offered, held_out, site.training.metric_ks)


def run_name(recipe_name: str, recipe: Recipe) -> str:
    """`gru seed 2`; a baseline draws nothing, so its name is enough."""
    return f"{recipe_name} seed {recipe.seed}" if isinstance(recipe, LearntRecipe) else recipe_name


def draw(
    site: TrainingSite, losses: list[tuple[int, float]], recipe_name: str, recipe: Recipe, metrics: dict[str, float]
) -> dict[str, bytes]:
    """The pictures of a run by file name: the learning curve, and recall seen from three sides."""
    name = run_name(recipe_name, recipe)
    pictures = recalls([Drawn(name, not isinstance(recipe, LearntRecipe), metrics)], site)
    return pictures | ({"learning_curve.png": learning_curve(losses, name)} if losses else {})


def describe_data(days: Sequence[date], vocabulary: Vocabulary, sequences: Sequences) -> dict[str, Any]:
    """What a run has learnt from, as MLflow parameters."""
    num_events = len(sequences.item_codes)
    return {
        **describe_window(days),
        "num_items": vocabulary.items.height,
        "num_sessions": sequences.num_sessions,
        "num_events": num_events,
        "num_targets": int(sequences.num_targets.sum()),
    }


def describe_context(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, str]:
    """What a run really reads of events beside items, as an MLflow parameter: without what the window did not tell."""
    if vocabulary.definitions is None or not isinstance(recipe, LearntRecipe):
        return {}
    classes = vocabulary.definitions.classes
    named = (*classes, *ALWAYS) if properties_read(recipe) is None else recipe.context
    return {"context_read": ", ".join(name for name in dict.fromkeys(named) if name in (*classes, *ALWAYS))}


def describe_window(days: Sequence[date]) -> dict[str, Any]:
    """The days that a run has learnt from, as MLflow parameters."""
    return {"window_first_day": days[0], "window_last_day": days[-1], "window_days": len(days)}


def surroundings(site: TrainingSite) -> dict[str, str]:
    """With what a run was made, as tags: a run that goes on may go on elsewhere."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "torch": torch.__version__, "site_file_sha256": site.file_sha256, **code_version()}


def describe_speed(recipe: Recipe, sequences: Sequences, seconds: float) -> dict[str, float]:
    """How long the fit took, and how many events it read a second; baselines read each once."""
    epochs = recipe.epochs if isinstance(recipe, LearntRecipe) else 1
    return {
        "train_seconds": seconds,
        "train_events_per_second": epochs * len(sequences.item_codes) / max(seconds, 1e-9),
    }


def log_data(run_id: str, store: Store, digest: str) -> None:
    """Say in the run which data it learnt from."""
    data = mlflow.data.meta_dataset.MetaDataset(
        mlflow.data.sources.LocalArtifactDatasetSource(store.table_uri(SEQUENCES.name)), "sequences", digest
    )
    with mlflow.start_run(run_id=run_id):
        mlflow.log_input(data, context="training")
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")  # leaving start_run has called it finished


def microseconds_at_end(site: TrainingSite, day: date) -> int:
    """The end of a day, microseconds since 1970."""
    return int(day_end(day, site.time_zone).timestamp()) * 1_000_000
