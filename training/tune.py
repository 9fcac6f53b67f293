"""Try a recipe with the night's last day of data held out: how many epochs are best, and how good they are.

Reads   `sessions` of the window that ends two days before the night, and of the day before it; nothing of the night's
        own day, on which recipes are tested in the end
Writes  an MLflow run with purpose=tune: losses and metrics after each epoch; no version
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from features.sequences import Sequences, encode_sessions
from features.vocabulary import Vocabulary, learn_vocabulary
from features.window import data_digest, earlier_sessions, held_out_sessions, sessions_until, window_days
from pipeline.dates import ONE_DAY
from pipeline.errors import ContractError
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle, build_for, describe_recipe, recipe_digest
from training.checkpoint import checkpoint_folder, remove_checkpoints
from training.evaluation import evaluate_next
from training.recipes import (
    MOST_SESSIONS,
    EnsembleRecipe,
    Recipe,
    SequenceRecipe,
    find_recipe,
    properties_read,
    reads_properties,
)
from training.settings import TrainingSite
from training.tracking import Tracking
from training.train import define_properties, fit_in, microseconds_at_end, run_name
from training.units import training_units

MOST_EPOCHS = 50


@dataclass(frozen=True)
class Rehearsal:
    """A night's training a day earlier: what is learnt from, and the day that is held out."""

    site: TrainingSite
    night: date
    days: list[date]
    """The window."""
    test: pl.DataFrame
    """Sessions of the held-out day."""
    earlier: pl.DataFrame
    """Those of the same visitors before it."""
    vocabulary: Vocabulary
    coded: Sequences
    """The window's sessions, known items only."""
    digest: str

    @property
    def held_out(self) -> date:
        """The day that recipes are measured on."""
        return self.night - ONE_DAY

    @property
    def as_of(self) -> int:
        """The end of the window, microseconds since 1970."""
        return microseconds_at_end(self.site, self.held_out - ONE_DAY)

    def measure(self, bundle: Bundle) -> dict[str, float]:
        """Metrics of the protocols `all` and `warm`; ContractError if the day has nothing to measure."""
        metrics = evaluate_next(bundle, self.test, self.site.training.metric_ks, self.earlier).means()
        if self.site.training.champion_metric not in metrics:
            raise ContractError(
                f"{self.site.name}: {self.held_out} has no target to measure {self.site.training.champion_metric} on"
            )
        return metrics


def read_rehearsal(site: TrainingSite, store: Store, night: date, recipe: Recipe) -> Rehearsal:
    """The data that a recipe is tuned on; ContractError if there is nothing to learn from."""
    store = store.pinned()
    held_out = night - ONE_DAY
    last = held_out - ONE_DAY
    days = window_days(site, store, last)
    test = held_out_sessions(site, store, held_out)
    sessions = sessions_until(site, store, days, last)
    vocabulary = learn_vocabulary(sessions, site.window.min_item_count)
    if reads_properties(recipe):
        vocabulary = define_properties(site, store, vocabulary, sessions, last, properties_read(recipe))
    coded = encode_sessions(sessions, vocabulary).known_only()
    if not coded.at_least(2).num_sessions:
        raise ContractError(
            f"{site.name}: no session of {days[0]} to {days[-1]} holds two items that are frequent enough"
        )
    earlier = earlier_sessions(site, store, test, held_out, MOST_SESSIONS)
    digest = data_digest(store, [*days, held_out], site.window.min_item_count)
    return Rehearsal(site, night, days, test, earlier, vocabulary, coded, digest)


def tune(site: TrainingSite, store: Store, night: date, recipe_name: str, seed: int) -> dict[str, Any]:
    """Fit until the held-out day gets no better; return the best epoch and its metrics."""
    recipe = find_recipe(recipe_name, site.training).model_copy(update={"seed": seed})
    return rehearse(read_rehearsal(site, store, night, recipe), Tracking(site), recipe_name, recipe)


def rehearse(
    rehearsal: Rehearsal,
    tracking: Tracking,
    recipe_name: str,
    recipe: Recipe,
    parent: str | None = None,
    gives_up: Callable[[int, float], bool] | None = None,
) -> dict[str, Any]:
    """The same of one recipe, as an MLflow run inside the night's, or inside `parent`; `gives_up` as in EarlyStop."""
    site, night, held_out = rehearsal.site, rehearsal.night, rehearsal.held_out
    sequences = training_units(recipe, rehearsal.coded)
    recommender: Any = build_for(recipe, rehearsal.vocabulary)
    bundle = Bundle(recommender, rehearsal.vocabulary, recipe_name, recipe, held_out - ONE_DAY, rehearsal.as_of)
    tags = {
        "recipe": recipe_name,
        "recipe_digest": recipe_digest(recipe),
        "seed": str(recipe.seed),
        "data_digest": rehearsal.digest,
        "kind": "tune",
        "purpose": "tune",
        "test_day": str(held_out),
    }
    with tracking.run(night, f"tune {run_name(recipe_name, recipe)}", tags, parent) as run_id:
        tracking.describe(run_id, describe_recipe(recipe), {})
        log.info("%s: tuning on %d sessions, tested on %s", recipe_name, sequences.num_sessions, held_out)
        if not isinstance(recipe, SequenceRecipe):
            if isinstance(recipe, EnsembleRecipe):  # its members' epochs stand; they are tuned one by one
                fit_in(recommender, sequences, recipe)
            else:
                recommender.fit(sequences, rehearsal.as_of)
            metrics = rehearsal.measure(bundle)
            tracking.log_metrics(run_id, metrics)
            return {"run_id": run_id, "metrics": metrics}
        from training.fit import EarlyStop, fit  # Lightning takes seconds to import; baselines do without

        folder = checkpoint_folder(site, night, tags, rehearsal.vocabulary)
        stop = EarlyStop(lambda: rehearsal.measure(bundle), site.training.champion_metric, recipe.patience)
        if gives_up is not None:
            stop = stop._replace(gives_up=gives_up)
        best = fit(recommender, sequences, recipe, MOST_EPOCHS, folder, tracking.report_epochs(run_id), stop)
        best_epoch = int(best.pop("best_epoch"))
        tracking.client.set_tag(run_id, "best_epoch", str(best_epoch))
        tracking.log_metrics(run_id, best, MOST_EPOCHS + 1)  # MLflow shows the last point: the best epoch's
    remove_checkpoints(folder)
    return {"run_id": run_id, "best_epoch": best_epoch, "metrics": best}
