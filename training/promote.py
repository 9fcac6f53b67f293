"""Choose the night's best version and let it become champion if it passes the gate.

Reads   the night's versions, the champion (its newest refit that has not seen the day), `sessions` of the day
Writes  the alias `champion`, or the reason why it stayed; the decision, its numbers and the reason with the night's
        versions, their runs and the night's run; there also all metrics beside each other, and whether the order of
        events told the challenger anything

The challenger is chosen on one half of the day's visitors and gated on the other half, so that the best of many
is not judged by the luck that made it the best. The gate compares pairs: the same visitors under both models.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from mlflow.entities import RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.dates import ONE_DAY
from pipeline.errors import ConfigurationError, NightjarError
from pipeline.publish import Store
from pipeline.terminal import log
from training.compare import compare, keep
from training.gate import Candidate, IndexRecall, below_baselines, decide
from training.measure import HeldOutDay, measure_bundle, read_held_out_day
from training.order import shuffle_test
from training.recipes import LearntRecipe
from training.report import comparison_text, main_headings
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, newest, number

BELOW = "gate/champion_minus_baseline"


def promote(
    site: TrainingSite, store: Store, night: date, index_recall: IndexRecall = lambda version: None
) -> dict[str, Any]:
    """Compare, choose, gate; return the verdict, a table of metrics, and what is worth an alert.

    `index_recall` measures the item index of a version; None for one that is searched exactly.
    """
    store = store.pinned()
    tracking = Tracking(site)
    versions = tracking.versions()
    challengers = newest_by_recipe(versions, night, list(site.training.recipes))
    if not challengers:
        raise ConfigurationError(
            f"{site.name}: no version was trained for {night}. Run `nightjar train` for that day first"
        )
    before = champion_before(tracking.champion(), versions, night)
    held_out, ks = read_held_out_day(site, store, night), site.training.metric_ks
    candidates = [measure(tracking, label(v, challengers), v, held_out, ks) for v in challengers]
    state = newest_state(before, versions, night) if before else None
    standing = measure(tracking, "champion", state, held_out, ks) if state else None
    best, decision = decide(site, candidates, standing, index_recall)
    verdict = decision.as_facts()
    mark(tracking, best.version if decision.promoted else None, night)
    overruled = move_alias(tracking, verdict, best.version, before, night)
    verdict |= overruled
    log.info("%s", verdict["reason"])
    order = shuffle_test(tracking.load(best.version), held_out.sessions, max(ks))
    log.info("%s", order.sentence(best.label))
    metrics = best.outcomes.means() | order.numbers()
    table = comparison(candidates + ([standing] if standing else []))
    run_id = tracking.night_run(night).info.run_id
    text = comparison_text(table, main_headings(max(ks)))
    log.info("%s", text)
    tracking.client.log_text(run_id, text, "comparison.txt")
    tell_versions(tracking, challengers, best, verdict, decision.numbers())
    below = below_baselines(site, candidates, best if decision.promoted else standing)
    tracking.log_metrics(run_id, metrics | decision.numbers() | ({BELOW: below[1]} if below else {}))
    tell_run(tracking, run_id, verdict | {"challenger_run": best.version.run_id})
    keep_comparison(site, tracking, night)
    alerts = alert_below(site, tracking, night, below) if below and not overruled else []
    if standing is None and not decision.promoted:
        alerts.append(f"{site.name}, {night}: {decision.reason}")
    return {
        "run_id": run_id,
        "model_version": number(best.version),
        "challenger": best.label,
        **verdict,
        "alerts": alerts,
        "metrics": metrics,
        "comparison": table,
    }


def tell_versions(
    tracking: Tracking,
    versions: Sequence[ModelVersion],
    best: Candidate,
    verdict: Mapping[str, Any],
    numbers: Mapping[str, float],
) -> None:
    """Say on each of the night's versions and their runs what became of it, and why."""
    other = {"promoted": False, "reason": f"{best.name} was the challenger of the night"}
    for version in versions:
        is_best = number(version) == number(best.version)
        told = {name: in_tag(value) for name, value in (verdict if is_best else other).items()}
        stale = {name.removeprefix("gate.") for name in version.tags if name.startswith("gate.")} - set(told)
        for name, value in (dict.fromkeys(stale, "") | told).items():
            tracking.client.set_model_version_tag(tracking.model_name, str(version.version), f"gate.{name}", value)
        if version.run_id:
            tell_run(tracking, version.run_id, dict.fromkeys(stale, "") | told)
    if best.version.run_id:
        tracking.log_metrics(best.version.run_id, numbers)


def tell_run(tracking: Tracking, run_id: str, facts: Mapping[str, Any]) -> None:
    """Say on a run what the gate decided."""
    tags = [RunTag(f"gate.{name}", in_tag(value)) for name, value in facts.items()]
    tracking.client.log_batch(run_id, tags=tags)


def in_tag(value: Any) -> str:
    """A fact as MLflow's tags hold it."""
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def alert_below(site: TrainingSite, tracking: Tracking, night: date, below: tuple[Candidate, float]) -> list[str]:
    """One sentence if the champion was below the best baseline for too many compared days in a row."""
    baseline, difference = below
    days = days_below(tracking, night, difference)
    if days < site.training.gate.days_below_baseline:
        return []
    return [
        f"{site.name}: the champion was below the best baseline on {days} compared days in a row, on {night} by "
        f"{-difference:.4f} in {site.training.champion_metric} (the baseline is {baseline.name})"
    ]


def days_below(tracking: Tracking, night: date, difference: float) -> int:
    """How many compared nights in a row, up to this one, the champion was below the best baseline."""
    if difference >= 0:
        return 0
    runs = tracking.runs("tags.kind = 'night'", ["tags.night DESC"])
    values = {run.data.tags["night"]: run.data.metrics[BELOW] for run in runs if BELOW in run.data.metrics}
    earlier = sorted((told for told in values if told < str(night)), reverse=True)
    above = (place for place, told in enumerate(earlier) if values[told] >= 0)
    return 1 + next(above, len(earlier))


def keep_comparison(site: TrainingSite, tracking: Tracking, night: date) -> None:
    """The page and the pictures that `nightjar compare` makes, with the night's run; a night goes on without them."""
    try:
        keep(site, tracking, night, compare(site, tracking, night), "nightly")
    except (NightjarError, MlflowException, OSError) as error:
        log.warning("the night goes on without its page of comparison: %s", error)


def newest_by_recipe(versions: list[ModelVersion], night: date, recipes: list[str]) -> list[ModelVersion]:
    """The night's trained versions, the newest of each recipe and seed; in the order of the site file's recipes.

    Versions that were trained for a report or to tune are none of the night's.
    """
    wanted = {"kind": "train", "night": str(night), "purpose": "nightly"}
    trained = [v for v in versions if wanted.items() <= v.tags.items()]
    found: dict[tuple[str, str], ModelVersion] = {}
    for version in trained:  # newest first
        found.setdefault((version.tags["recipe"], version.tags.get("seed", "")), version)
    place = {recipe: n for n, recipe in enumerate(recipes)}
    return [found[key] for key in sorted(found, key=lambda key: (place.get(key[0], len(place)), key))]


def label(version: ModelVersion, beside: list[ModelVersion]) -> str:
    """The recipe of a version; with its seed where others have the same one."""
    recipe = version.tags["recipe"]
    is_only = sum(other.tags["recipe"] == recipe for other in beside) == 1
    return recipe if is_only else f"{recipe} seed {version.tags['seed']}"


def champion_before(champion: ModelVersion | None, versions: list[ModelVersion], night: date) -> ModelVersion | None:
    """The champion before the night: what the alias names, or for a night that is run again what it named then."""
    if champion is not None and data_through(champion) < night - ONE_DAY:
        return champion
    return newest(v for v in versions if v.tags.get("promoted") and data_through(v) < night - ONE_DAY)


def newest_state(champion: ModelVersion, versions: list[ModelVersion], night: date) -> ModelVersion:
    """A champion as it went on: its newest refit that has not seen the night's day, else the champion itself."""
    refits = [v for v in versions if v.tags.get("parent_version") == str(champion.version) and data_through(v) < night]
    return newest([champion, *refits]) or champion


def mark(tracking: Tracking, winner: ModelVersion | None, night: date) -> None:
    """Tag the night's winner as `promoted`, and no other version of the night: an earlier run may have."""
    name, client = tracking.model_name, tracking.client
    if winner is not None:
        client.set_model_version_tag(name, str(winner.version), "promoted", str(night))
    for version in tracking.versions():
        is_winner = winner is not None and number(version) == number(winner)
        if version.tags.get("promoted") == str(night) and not is_winner:
            client.delete_model_version_tag(name, str(version.version), "promoted")


def move_alias(
    tracking: Tracking, verdict: dict[str, Any], winner: ModelVersion, before: ModelVersion | None, night: date
) -> dict[str, Any]:
    """Point `champion` at who won the night; what that changes in the verdict. Old nights leave newer champions."""
    named = tracking.champion()
    if named is not None and data_through(named) > night - ONE_DAY:
        stays = f"the alias stays with version {number(named)}, trained through {data_through(named)}: a later night's"
        return {"promoted": False, "reason": f"{verdict['reason']}; {stays}"}
    champion = winner if verdict["promoted"] else before
    if champion is not None:
        tracking.set_alias("champion", number(champion))
    elif named is not None:  # this night's own, before it was run again
        tracking.delete_alias("champion")
    return {}


def measure(
    tracking: Tracking, label: str, version: ModelVersion, held_out: HeldOutDay, ks: Sequence[int]
) -> Candidate:
    """Test a version on the day."""
    bundle = tracking.load(version)
    is_baseline = not isinstance(bundle.recipe, LearntRecipe)
    return Candidate(label, version, measure_bundle(bundle, held_out, ks), is_baseline)


def comparison(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """A row a candidate: every metric and its interval."""
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        row: dict[str, Any] = {"model": candidate.label, "version": number(candidate.version)}
        rows.append(row | {"metrics": candidate.outcomes.means(), "intervals": candidate.outcomes.intervals()})
    return rows
