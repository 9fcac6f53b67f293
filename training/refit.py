"""Let the champion learn the newest day, so that what is exported knows tonight's items.

Reads   the champion of the night, `sessions` through the day
Writes  a version with `parent_version`, the alias `serving`
"""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion

from features.intents import tell_of_gone_columns
from features.sequences import encode_sessions
from features.vocabulary import Vocabulary, extend_vocabulary
from features.window import check_passed, data_digest, sessions_until, window_days
from pipeline.catalogue import latest_items
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle, recipe_digest
from training.checkpoint import checkpoint_folder, remove_checkpoints
from training.grow import grow
from training.notes import NOTE, refit_note
from training.recipes import LearntRecipe
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, newest, number
from training.train import describe_window, fit_in, make, microseconds_at_end, surroundings
from training.units import training_units

if TYPE_CHECKING:
    from training.fit import Losses, Report


MOVED_SHARE = 0.1
NOTHING: dict[str, Any] = {"run_id": None, "model_version": None, "metrics": {}}
"""What is reported where there is nothing to refit."""


def refit(site: TrainingSite, store: Store, night: date) -> dict[str, Any]:
    """Refit the champion through `night`; return the new version. With `refit: none` the champion itself serves.

    Where there is no champion for that night, nothing is done.
    """
    store = store.pinned()
    tracking = Tracking(site)
    champion = champion_of(tracking, night)
    if champion is None:
        log.warning(
            "%s: there is no champion for %s, so there is nothing to refit. `nightjar train` and `nightjar promote` "
            "make one",
            *(site.name, night),
        )
        return NOTHING
    return refit_champion(site, store, tracking, champion, night)


def refit_nightly(site: TrainingSite, store: Store, night: date) -> dict[str, Any]:
    """Refit the champion that stood when the night began; the first one of all may have come later.

    A night that is run again therefore serves what it served before. Where a later day is served already, nothing is
    done: no list would be made of it.
    """
    store = store.pinned()
    tracking = Tracking(site)
    serving = tracking.by_alias("serving")
    if serving is not None and data_through(serving) > night:
        told = (number(serving), data_through(serving), night)
        log.info("version %d serves, which has learnt through %s: no refit for %s is needed", *told)
        return NOTHING
    champion = standing_champion(tracking, night)
    return refit(site, store, night) if champion is None else refit_champion(site, store, tracking, champion, night)


def refit_champion(
    site: TrainingSite, store: Store, tracking: Tracking, champion: ModelVersion, night: date
) -> dict[str, Any]:
    """Refit a champion through `night`."""
    check_passed(site, store, night)
    if site.training.refit == "none":
        serve(tracking, champion, night)
        return {"run_id": champion.run_id, "model_version": number(champion), "metrics": {}}
    bundle = tracking.load(champion)
    days = window_days(site, store, night)
    digest = data_digest(store, days, site.window.min_item_count)
    tags = {
        "recipe": bundle.recipe_name,
        "recipe_digest": recipe_digest(bundle.recipe),
        "seed": str(bundle.recipe.seed),
        "purpose": "nightly",
        "kind": "refit",
        "parent_version": str(champion.version),
        "data_digest": digest,
    }
    with tracking.run(night, f"refit {bundle.recipe_name}", tags) as run_id:
        tracking.describe(run_id, describe_window(days), surroundings(site))
        tracking.client.set_tag(run_id, NOTE, refit_note(number(champion), night))
        sessions = sessions_until(site, store, days, night)
        folder = checkpoint_folder(site, night, tags, bundle.vocabulary)
        catalogue, report = latest_items(store, night), tracking.report_epochs(run_id)
        fresh, losses = learn_on(site, bundle, sessions, night, folder, report, catalogue)
        num_new = fresh.vocabulary.num_codes - bundle.vocabulary.num_codes
        log.info("refit of version %s: %d sessions, %d new items", number(champion), sessions.height, num_new)
        tracking.log_metrics(run_id, {"num_new_items": float(num_new)})
        metrics = losses | {"num_new_items": float(num_new)}
        version = tracking.register(fresh, run_id, {**tags, "night": str(night)})
        remove_checkpoints(folder)
    serve(tracking, tracking.client.get_model_version(tracking.model_name, str(version)), night)
    return {"run_id": run_id, "model_version": version, "parent_version": number(champion), "metrics": metrics}


def learn_on(
    site: TrainingSite,
    bundle: Bundle,
    sessions: pl.DataFrame,
    night: date,
    folder: Path | None = None,
    report: "Report | None" = None,
    catalogue: pl.DataFrame | None = None,
) -> "tuple[Bundle, Losses]":
    """The bundle after it has learnt from the sessions through `night`, and its last losses; more in `fit_in`.

    `catalogue` (rows of `items`) describes items to a model that reads more of them than their codes.
    """
    tell_of_gone_columns(site, bundle.vocabulary.definitions)
    vocabulary = extend_vocabulary(bundle.vocabulary, sessions, site.window.min_item_count)
    if bundle.vocabulary.definitions is not None and catalogue is not None:
        vocabulary = vocabulary.describe(bundle.vocabulary.definitions, catalogue)
        tell_of_moved_items(bundle.vocabulary, vocabulary)
    recipe = bundle.recipe
    sequences = training_units(recipe, encode_sessions(sessions, vocabulary).known_only())
    as_of = microseconds_at_end(site, night)
    recommender: Any
    losses: dict[str, float] = {}
    if not isinstance(recipe, LearntRecipe):
        recommender, _ = make(recipe, vocabulary, sequences, as_of)
    else:
        recommender = grow(bundle, vocabulary, recipe)
        if sequences.num_sessions:
            losses = fit_in(recommender, sequences, recipe, folder, report, is_refit=True)
    return Bundle(recommender.eval(), vocabulary, bundle.recipe_name, recipe, night, as_of), losses


def tell_of_moved_items(old: Vocabulary, new: Vocabulary) -> None:
    """Warn where many items have another category than when the model learnt what its categories mean."""
    both = old.items.join(new.items, on="item_id", suffix="_now")
    num_moved = int((both["category"] != both["category_now"]).sum())
    if num_moved > MOVED_SHARE * both.height:
        log.warning(
            "the category of %d of %d items is another one, or none that the model knows, since it was trained. It "
            "learns on with what they are now; if categories were made anew, train it anew",
            *(num_moved, both.height),
        )


def champion_of(tracking: Tracking, night: date) -> ModelVersion | None:
    """The champion that stood after the night: the alias, or for an old night the newest version promoted by then."""
    champion = tracking.champion()
    if champion is None or data_through(champion) >= night:
        champion = newest(v for v in tracking.versions() if v.tags.get("promoted") and data_through(v) < night)
    return champion


def standing_champion(tracking: Tracking, night: date) -> ModelVersion | None:
    """The champion that stood before the night: what the alias names, unless it came with this night or a later one."""
    champion = tracking.champion()
    if champion is not None and data_through(champion) < night and champion.tags.get("promoted", "") < str(night):
        return champion
    return newest(v for v in tracking.versions() if v.tags.get("promoted") and v.tags["promoted"] < str(night))


def serve(tracking: Tracking, version: ModelVersion, night: date) -> None:
    """Point `serving` at a version, unless it already names one of a later day."""
    current = tracking.by_alias("serving")
    if current is None or data_through(current) <= night:
        tracking.set_alias("serving", number(version))
