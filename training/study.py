"""Look for the best fields of a recipe: trials on the day before the night, kept in a file, gone on with after a kill.

Reads   what `train --purpose tune` reads: the window that ends two days before the night, and the day before the night;
        nothing of the night's own day
Writes  NIGHTJAR_HOME/tuning/SITE.db, a study of Optuna for each recipe and its data; an MLflow run a study, and inside
        it one a trial, as `train --purpose tune` writes it

The first trial is the recipe as it is. The others are drawn by a tree of Parzen estimators (Bergstra et al., NIPS
2011), ten at random first, and given up after an epoch that is worse than the median of the trials before by then.
A study goes on until it has as many trials, or has taken as many minutes, as are asked for, over all its runs; so every
recipe has the same budget. A trial that was killed is tried again from its last checkpoint.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from datetime import date
from time import monotonic

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import ConfigurationError, RetryableError, kind_of, reason_of
from pipeline.publish import Store
from pipeline.terminal import log
from training.bundle import describe_recipe
from training.recipes import Recipe, find_recipe, override
from training.search_space import SPACE, SPACES, Space, Value, present, space_of
from training.settings import TrainingSite
from training.tracking import Tracking
from training.tune import Rehearsal, read_rehearsal, rehearse

FEWEST_BEFORE_PRUNING = 4
RANDOM_TRIALS = 10
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Best:
    """The best trial of a recipe's study, beside the recipe as it was."""

    recipe: str
    night: date
    metric: str
    num_trials: int
    num_pruned: int
    num_failed: int
    minutes: float
    as_it_was: float | None
    """The metric of the first trial; None: it failed."""
    best: float
    fields: dict[str, Value]
    """Of the best trial: all that were tried, and its best epoch as `epochs`."""
    run_id: str
    """Of the best trial in MLflow."""


def tune_recipe(
    site: TrainingSite, store: Store, night: date, recipe_name: str, *, trials: int, minutes: float
) -> Best:
    """Go on with a recipe's study until it has so many trials, or has taken so many minutes; return its best."""
    optuna.logging.set_verbosity(logging.WARNING)
    recipe = find_recipe(recipe_name, site.training)
    rehearsal = read_rehearsal(site, store, night, recipe)
    study = open_study(rehearsal, recipe_name, recipe)
    give_back_killed(study)
    space = SPACE.validate_python(study.user_attrs["space"])
    wanted, tracking = trials if space else 1, Tracking(site)
    if num_done(study) < wanted and spent(study) < 60 * minutes:
        tags = {"kind": "study", "purpose": "tune", "recipe": recipe_name, "study": study.study_name}
        with tracking.run(night, f"study {recipe_name}", tags | {"test_day": str(rehearsal.held_out)}) as run_id:
            while num_done(study) < wanted and spent(study) < 60 * minutes:
                deadline = monotonic() + 60 * minutes - spent(study)
                run_trial(study, space, rehearsal, tracking, recipe_name, recipe, run_id, deadline)
            found = best_of(study)
            tracking.describe(run_id, describe_recipe(override(recipe_name, recipe, found.fields)), {})
            tracking.log_metrics(run_id, {site.training.champion_metric: found.best, "num_trials": found.num_trials})
    return best_of(study)


def open_study(rehearsal: Rehearsal, recipe_name: str, recipe: Recipe) -> optuna.Study:
    """The study of a recipe on its data, new or as it stands.

    Other data, another metric, another space, or other fields beside those that are tried make another study.
    """
    site = rehearsal.site
    declared = SPACES.get(recipe_name, {})
    chosen = recipe.model_dump(mode="json", exclude_defaults=True)
    fixed = {name: value for name, value in chosen.items() if name not in (*declared, "epochs")}
    metric = site.training.champion_metric
    told = json.dumps([rehearsal.digest, metric, SPACE.dump_python(declared, mode="json"), fixed], sort_keys=True)
    name = f"{recipe_name} {rehearsal.night} {hashlib.sha256(told.encode()).hexdigest()[:12]}"
    storage = open_storage(site)
    known = {study.study_name for study in optuna.get_all_study_summaries(storage)}
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner()
    )
    if name not in known or "space" not in study.user_attrs:
        now = space_of(recipe_name, recipe)
        facts = {"site": site.name, "recipe": recipe_name, "night": str(rehearsal.night), "metric": metric}
        for attribute, value in (facts | {"space": SPACE.dump_python(now, mode="json")}).items():
            study.set_user_attr(attribute, value)
        study.enqueue_trial({field: present(recipe)[field] for field in now}, skip_if_exists=True)
        log.info("%s: a new study, %s", recipe_name, name)
    num_trials = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=recipe.seed + num_trials)
    return study


def pruner() -> optuna.pruners.BasePruner:
    """What gives up trials that do worse than most."""
    return optuna.pruners.MedianPruner(n_startup_trials=FEWEST_BEFORE_PRUNING, n_warmup_steps=1)


def open_storage(site: TrainingSite) -> optuna.storages.RDBStorage:
    """The site's file; raises ConfigurationError for one of another site, and for what is no file of studies."""
    file = site.home / "tuning" / f"{site.name}.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
        studies = optuna.get_all_study_summaries(storage)
    except Exception as error:  # SQLAlchemy, alembic and sqlite each have their own
        if kind_of(error) is RetryableError:
            raise RetryableError(
                f"cannot use {file}: {reason_of(error)}. Run the command again once that is over"
            ) from error
        raise ConfigurationError(
            f"{file} is no file of studies, or a damaged one ({' '.join(str(error).split())[:120]}). Move it away; "
            "tuning then begins anew"
        ) from error
    owners = {study.user_attrs.get("site", site.name) for study in studies}
    if owners - {site.name}:
        raise ConfigurationError(
            f"{file} holds studies of the site {sorted(owners - {site.name})[0]!r}, not of {site.name!r}: its numbers "
            "are of other data. Move it away, or take the site file that it belongs to"
        )
    return storage


def give_back_killed(study: optuna.Study) -> None:
    """Trials that are under way belong to a process that is gone, as only one works on a study: try them again."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            log.info("trial %d was cut off and is tried again", trial.number)
            study.enqueue_trial(trial.params)


def run_trial(
    study: optuna.Study,
    space: Space,
    rehearsal: Rehearsal,
    tracking: Tracking,
    recipe_name: str,
    recipe: Recipe,
    parent: str,
    deadline: float,
) -> None:
    """Draw fields, train, and tell the study what came out."""
    started, trial = monotonic(), study.ask()
    fields = {field: rounded(choice.suggest(trial, field)) for field, choice in space.items()}
    trial.set_user_attr("fields", fields)
    if (before := same_trial(study, fields)) is not None:
        trial.set_user_attr("run_id", before.user_attrs["run_id"])
        trial.set_user_attr("best_epoch", before.user_attrs.get("best_epoch"))
        study.tell(trial, before.value)
        return
    watch = Watch(trial, deadline)
    try:
        told = rehearse(rehearsal, tracking, recipe_name, override(recipe_name, recipe, fields), parent, watch)
    except ConfigurationError as error:  # this recipe diverges or does not fit into memory; another one may not
        log.warning("trial %d failed: %s", trial.number, error)
        trial.set_user_attr("fault", str(error))
        trial.set_user_attr("seconds", monotonic() - started)
        study.tell(trial, state=TrialState.FAIL)
        return
    value = told["metrics"][rehearsal.site.training.champion_metric]
    trial.set_user_attr("run_id", told["run_id"])
    trial.set_user_attr("best_epoch", told.get("best_epoch"))
    trial.set_user_attr("seconds", monotonic() - started)
    for tag, text in {"trial": trial.number, "study": study.study_name, "pruned": watch.is_pruned}.items():
        tracking.client.set_tag(told["run_id"], tag, str(text))
    if watch.is_pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
    log.info("trial %d: %.4f%s, %s", trial.number, value, ", given up" if watch.is_pruned else "", fields)


class Watch:
    """Ends a trial that does worse than most did by then, or whose time is up; this one still counts."""

    def __init__(self, trial: optuna.Trial, deadline: float) -> None:
        self.trial, self.deadline = trial, deadline
        self.is_pruned = False

    def __call__(self, epoch: int, value: float) -> bool:
        """Whether to go no further."""
        self.trial.report(value, epoch)
        self.is_pruned = bool(self.trial.should_prune())
        return self.is_pruned or monotonic() >= self.deadline


def rounded(value: Value) -> Value:
    """Numbers as a person would write them into a site file."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def same_trial(study: optuna.Study, fields: dict[str, Value]) -> FrozenTrial | None:
    """A trial of the same fields that was brought to its end."""
    done = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return next((trial for trial in done if trial.user_attrs.get("fields") == fields), None)


def num_done(study: optuna.Study) -> int:
    """Trials that count: those that were cut off do not."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state in DONE or "fault" in trial.user_attrs for trial in trials)


def spent(study: optuna.Study) -> float:
    """Seconds of all trials."""
    return sum(trial.user_attrs.get("seconds", 0.0) for trial in study.get_trials(deepcopy=False))


def best_of(study: optuna.Study) -> Best:
    """The best trial; raises ConfigurationError if none was brought to its end."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    facts = study.user_attrs
    if not complete:
        faults = [trial.user_attrs["fault"] for trial in trials if "fault" in trial.user_attrs]
        why = f" The last fault: {faults[-1]}" if faults else ""
        raise ConfigurationError(f"no trial of {facts['recipe']} came to its end yet.{why}")
    best = max(complete, key=lambda trial: trial.value or 0.0)
    fields = dict(best.user_attrs["fields"])
    epochs = {"epochs": best.user_attrs["best_epoch"]} if best.user_attrs.get("best_epoch") else {}
    return Best(
        facts["recipe"],
        date.fromisoformat(facts["night"]),
        facts["metric"],
        num_done(study),
        sum(trial.state is TrialState.PRUNED for trial in trials),
        sum("fault" in trial.user_attrs for trial in trials),
        round(spent(study) / 60, 2),
        next((trial.value for trial in complete if trial.user_attrs["fields"] == as_it_was(trials)), None),
        float(best.value or 0.0),
        fields | epochs,
        best.user_attrs["run_id"],
    )


def as_it_was(trials: list[FrozenTrial]) -> dict[str, Value] | None:
    """The fields that the recipe had when its study began."""
    return next((trial.user_attrs["fields"] for trial in trials if "fields" in trial.user_attrs), None)


def bests(site: TrainingSite) -> list[Best]:
    """Of each recipe the best trial of its newest study, in order of the site's recipes and then of names."""
    storage = open_storage(site)
    found: dict[str, tuple[str, str, Best]] = {}
    for summary in optuna.get_all_study_summaries(storage):
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        try:
            best = best_of(study)
        except ConfigurationError:
            continue
        newest = (str(best.night), str(summary.datetime_start), best)
        found[best.recipe] = max(found.get(best.recipe, newest), newest, key=lambda each: each[:2])
    order = [*site.training.recipes, *sorted(found)]
    return [found[name][2] for name in dict.fromkeys(order) if name in found]
