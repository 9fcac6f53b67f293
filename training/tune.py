"""Try a recipe with the night's last day of data held out: how many epochs are best, and how good they are.

Reads   `sessions` of the window that ends two days before the night, and of the day before it; nothing of the night's
        own day, on which recipes are tested in the end
Writes  an MLflow run with purpose=tune: losses and metrics after each epoch; no version
"""

from datetime import date
from typing import Any

import polars as pl

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from features.window import data_digest, earlier_sessions, held_out_sessions, sessions_until, window_days
from pipeline.dates import ONE_DAY
from pipeline.errors import ContractError
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle, build_for, describe_recipe, recipe_digest
from training.checkpoint import checkpoint_folder, remove_checkpoints
from training.evaluation import evaluate_next
from training.recipes import MOST_SESSIONS, SequenceRecipe, find_recipe, reads_properties
from training.settings import TrainingSite
from training.tracking import Tracking
from training.train import define_properties, microseconds_at_end, run_name
from training.units import training_units

MOST_EPOCHS = 50


def tune(site: TrainingSite, store: Store, night: date, recipe_name: str, seed: int) -> dict[str, Any]:
    """Fit until the held-out day gets no better; return the best epoch and its metrics."""
    recipe = find_recipe(recipe_name, site.training).model_copy(update={"seed": seed})
    held_out = night - ONE_DAY
    days = window_days(site, store, held_out - ONE_DAY)
    test = held_out_sessions(site, store, held_out)
    earlier = earlier_sessions(site, store, test, held_out, MOST_SESSIONS)
    sessions = sessions_until(site, store, days, held_out - ONE_DAY)
    vocabulary = learn_vocabulary(sessions, site.window.min_item_count)
    if reads_properties(recipe):
        vocabulary = define_properties(site, store, vocabulary, sessions, held_out - ONE_DAY, recipe.context)
    sequences = training_units(recipe, encode_sessions(sessions, vocabulary).known_only())
    if not sequences.num_sessions:
        raise ContractError(
            f"{site.name}: no session of {days[0]} to {days[-1]} holds two items that are frequent enough"
        )
    as_of = microseconds_at_end(site, held_out - ONE_DAY)
    recommender: Any = build_for(recipe, vocabulary)
    bundle = Bundle(recommender, vocabulary, recipe_name, recipe, held_out - ONE_DAY, as_of)
    tracking = Tracking(site)
    tags = {
        "recipe": recipe_name,
        "recipe_digest": recipe_digest(recipe),
        "seed": str(seed),
        "data_digest": data_digest(store, [*days, held_out], site.window.min_item_count),
        "kind": "tune",
        "purpose": "tune",
        "test_day": str(held_out),
    }
    with tracking.run(night, f"tune {run_name(recipe_name, recipe)}", tags) as run_id:
        tracking.describe(run_id, describe_recipe(recipe), {})
        log.info("%s: tuning on %d sessions, tested on %s", recipe_name, sequences.num_sessions, held_out)
        if not isinstance(recipe, SequenceRecipe):
            recommender.fit(sequences, as_of)
            metrics = measure(site, bundle, test, earlier, held_out)
            tracking.log_metrics(run_id, metrics)
            return {"run_id": run_id, "metrics": metrics}
        from training.fit import EarlyStop, fit  # Lightning takes seconds to import; baselines do without

        folder = checkpoint_folder(site, night, tags, vocabulary)
        metric = site.training.champion_metric
        stop = EarlyStop(lambda: measure(site, bundle, test, earlier, held_out), metric, recipe.patience)
        best = fit(recommender, sequences, recipe, MOST_EPOCHS, folder, tracking.report_epochs(run_id), stop)
        best_epoch = int(best.pop("best_epoch"))
        tracking.client.set_tag(run_id, "best_epoch", str(best_epoch))
        tracking.log_metrics(run_id, best, MOST_EPOCHS + 1)  # MLflow shows the last point: the best epoch's
    remove_checkpoints(folder)
    return {"run_id": run_id, "best_epoch": best_epoch, "metrics": best}


def measure(
    site: TrainingSite, bundle: Bundle, test: pl.DataFrame, earlier: pl.DataFrame, day: date
) -> dict[str, float]:
    """Metrics of the protocols `all` and `warm` on the held-out day; ContractError if it has nothing to measure."""
    metrics = evaluate_next(bundle, test, site.training.metric_ks, earlier).means()
    if site.training.champion_metric not in metrics:
        raise ContractError(f"{site.name}: {day} has no target to measure {site.training.champion_metric} on")
    return metrics
