"""Choose the night's best version and let it become champion if it beats the one that stands.

Reads   the night's versions, the champion (its newest refit that has not seen the day), `sessions` of the day
Writes  the alias `champion`, or the reason why it stayed; in the night's run all metrics beside each other, and whether
        the order of events told the challenger anything

The challenger is chosen on one half of the day's visitors and gated on the other half, so that the best of many
is not judged by the luck that made it the best. The gate compares pairs: the same visitors under both models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.dates import ONE_DAY
from pipeline.errors import ConfigurationError, NightjarError
from pipeline.ids import sha256
from pipeline.publish import Store
from pipeline.terminal import log
from training.compare import compare, keep
from training.difference import paired_difference
from training.measure import HeldOutDay, measure_bundle, read_held_out_day
from training.order import shuffle_test
from training.outcomes import Outcomes
from training.report import comparison_text, main_headings
from training.settings import TrainingSite
from training.tracking import Tracking, data_through, newest, number


@dataclass(frozen=True)
class Candidate:
    """A version and what it did on the day."""

    label: str
    version: ModelVersion
    outcomes: Outcomes


def promote(site: TrainingSite, store: Store, night: date) -> dict[str, Any]:
    """Compare, choose, gate; return the verdict and a table of metrics."""
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
    choice, gate = halves(candidates[0].outcomes)
    metric = site.training.champion_metric
    best = max(candidates, key=lambda c: c.outcomes.of_visitors(choice).means().get(metric, 0.0))
    verdict = judge(best, standing, gate, metric)
    mark(tracking, best.version if verdict["promoted"] else None, night)
    verdict |= move_alias(tracking, verdict, best.version, before, night)
    log.info("%s", verdict["reason"])
    order = shuffle_test(tracking.load(best.version), held_out.sessions, max(ks))
    log.info("%s", order.sentence(best.label))
    metrics = best.outcomes.means() | order.numbers()
    table = comparison(candidates + ([standing] if standing else []))
    run_id = tracking.night_run(night).info.run_id
    text = comparison_text(table, main_headings(max(ks)))
    log.info("%s", text)
    tracking.client.log_text(run_id, text, "comparison.txt")
    tracking.log_metrics(run_id, metrics)
    for name, value in (verdict | {"challenger_run": best.version.run_id}).items():
        tracking.client.set_tag(run_id, f"gate.{name}", "" if value is None else str(value))
    keep_comparison(site, tracking, night)
    return {
        "run_id": run_id,
        "model_version": number(best.version),
        "challenger": best.label,
        **verdict,
        "metrics": metrics,
        "comparison": table,
    }


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
    return {}


def measure(
    tracking: Tracking, label: str, version: ModelVersion, held_out: HeldOutDay, ks: Sequence[int]
) -> Candidate:
    """Test a version on the day."""
    return Candidate(label, version, measure_bundle(tracking.load(version), held_out, ks))


def halves(outcomes: Outcomes) -> tuple[pl.Series, pl.Series]:
    """The day's visitors in two halves, by a hash that has nothing to do with buckets."""
    visitors = outcomes.rows.select(pl.col("visitor").unique().sort())
    is_first = sha256(pl.concat_str([pl.lit("gate:"), pl.col("visitor")])).str.slice(0, 1).is_in(list("01234567"))
    marked = visitors.with_columns(is_first=is_first)
    return marked.filter("is_first")["visitor"], marked.filter(~pl.col("is_first"))["visitor"]


def judge(best: Candidate, standing: Candidate | None, gate: pl.Series, metric: str) -> dict[str, Any]:
    """Whether the challenger takes over, and the sentence that says why."""
    ours = best.outcomes.of_visitors(gate)
    name = f"{best.label} (version {best.version.version})"
    if standing is None:
        value = ours.means().get(metric)
        figure = f"{metric} {value:.4f}" if value is not None else f"nothing on the day to measure {metric} on"
        reason = f"{name} is the first champion: {figure}"
        return {"promoted": True, "reason": reason, "difference": None, "interval": None, "p_value": None}
    difference, low, high, p_value = paired_difference(ours, standing.outcomes.of_visitors(gate), metric)
    num_visitors = ours.rows.filter(pl.col("protocol") == metric.split("/")[0]).height
    interval = f"95 % interval {low:+.4f} to {high:+.4f}, p {p_value:.4f}"
    figures = f"{metric} {difference:+.4f}, {interval}, {num_visitors} visitors"
    if difference > 0:
        reason = f"{name} takes over from version {standing.version.version}: {figures}"
    else:
        reason = f"version {standing.version.version} stays champion; {name} is not better: {figures}"
    told = {"difference": difference, "interval": [low, high], "p_value": p_value}
    return {"promoted": difference > 0, "reason": reason, **told}


def comparison(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """A row a candidate: every metric and its interval."""
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        row: dict[str, Any] = {"model": candidate.label, "version": number(candidate.version)}
        rows.append(row | {"metrics": candidate.outcomes.means(), "intervals": candidate.outcomes.intervals()})
    return rows
