"""Let the champion learn the newest day, so that what is exported knows tonight's items.

Reads   the champion of the night, `sessions` through the day
Writes  a version with `parent_version`, the alias `serving`
"""

from datetime import date
from typing import Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion

from features.sequences import encode_sessions
from features.vocabulary import Vocabulary, extend_vocabulary
from features.window import check_passed, data_digest, sessions_until, window_days
from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import Bundle, build, recipe_digest
from training.models.base import SessionModel
from training.recipes import SequenceRecipe
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, newest, number
from training.train import fit_in, make, microseconds_at_end


def refit(site: TrainingSite, store: Store, night: date) -> dict[str, Any]:
    """Refit the champion through `night`; return the new version. With `refit: none` the champion itself serves."""
    tracking = Tracking(site)
    champion = champion_of(tracking, night)
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
        "kind": "refit",
        "parent_version": str(champion.version),
        "data_digest": digest,
    }
    with tracking.run(night, f"refit {bundle.recipe_name}", tags) as run_id:
        sessions = sessions_until(site, store, days, night)
        fresh, losses = learn_on(site, bundle, sessions, night, run_id)
        num_new = fresh.vocabulary.num_codes - bundle.vocabulary.num_codes
        log.info("refit of version %s: %d sessions, %d new items", number(champion), sessions.height, num_new)
        tracking.log_metrics(run_id, {"num_new_items": float(num_new)})
        metrics = losses | {"num_new_items": float(num_new)}
        version = tracking.register(fresh, run_id, {**tags, "night": str(night)})
    serve(tracking, tracking.client.get_model_version(site.name, str(version)), night)
    return {"run_id": run_id, "model_version": version, "parent_version": number(champion), "metrics": metrics}


def learn_on(
    site: TrainingSite, bundle: Bundle, sessions: pl.DataFrame, night: date, run_id: str | None = None
) -> tuple[Bundle, dict[str, float]]:
    """The bundle after it has learnt from the sessions through `night`, and its last losses."""
    vocabulary = extend_vocabulary(bundle.vocabulary, sessions, site.window.min_item_count)
    sequences = encode_sessions(sessions, vocabulary).known_only().at_least(2)
    as_of = microseconds_at_end(site, night)
    recipe = bundle.recipe
    recommender: Any
    if not isinstance(recipe, SequenceRecipe):
        recommender, losses = make(recipe, vocabulary, sequences, as_of)
    else:
        recommender = grow(bundle, vocabulary, recipe)
        losses = fit_in(recommender, sequences, recipe, recipe.refit_epochs, run_id) if sequences.num_sessions else {}
    return Bundle(recommender.eval(), vocabulary, bundle.recipe_name, recipe, night, as_of), losses


def champion_of(tracking: Tracking, night: date) -> ModelVersion:
    """The champion that stood after the night: the alias, or for an old night the newest version promoted by then."""
    champion = tracking.champion()
    if champion is None or data_through(champion) >= night:
        champion = newest(v for v in tracking.versions() if v.tags.get("promoted") and data_through(v) < night)
    if champion is None:
        raise ConfigurationError(
            f"{tracking.site.name}: there is no champion for {night}. Run `nightjar train` and `nightjar promote` first"
        )
    return champion


def grow(bundle: Bundle, vocabulary: Vocabulary, recipe: SequenceRecipe) -> SessionModel:
    """The same model with rows for new items; every known row as it was."""
    grown: Any = build(recipe, vocabulary.num_codes)
    state = grown.state_dict()
    for name, learnt in bundle.recommender.state_dict().items():
        state[name][tuple(slice(0, size) for size in learnt.shape)] = learnt
    grown.load_state_dict(state)
    return grown


def serve(tracking: Tracking, version: ModelVersion, night: date) -> None:
    """Point `serving` at a version, unless it already names one of a later day."""
    current = tracking.by_alias("serving")
    if current is None or data_through(current) <= night:
        tracking.set_alias("serving", number(version))
