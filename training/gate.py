"""Whether the night's challenger takes over from the champion: the margin of the metric, and the guards.

The champion metric decides, on visitors who had no part in choosing the challenger: the 95 % interval of challenger
minus champion must exclude a loss larger than `training.gate.margin`, a share of the champion's value. Guards keep what
that metric does not see. Those of lists have the limits of list QA (`export.checks`): what an export would refuse to
publish is not promoted.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl
from mlflow.entities.model_registry import ModelVersion

from pipeline.checkpoint import allowed_in_words, is_within, show_number
from pipeline.ids import sha256
from training.difference import Difference, paired_difference
from training.outcomes import Outcomes
from training.settings import TrainingSite
from training.tracking import number

GUARDS = {
    "fallback_share": "share of places in its lists that it leaves to popular items",
    "index_recall": "share of the exact lists that the item index finds",
    "coverage_kept": "items in its lists, over those in the champion's",
    "evenness_kept": "1 - Gini of how often its lists show an item, over that of the champion's",
    "list_kept": "any_recall of its lists over that of the champion's, the upper end of the interval",
}
"""Guard -> what its number is."""
IndexRecall = Callable[[ModelVersion], float | None]
"""Measures the item index of a version; None where the site searches exactly."""


@dataclass(frozen=True)
class Candidate:
    """A version and what it did on the day."""

    label: str
    version: ModelVersion
    outcomes: Outcomes
    is_baseline: bool = False

    @property
    def name(self) -> str:
        """Label and version."""
        return f"{self.label} (version {self.version.version})"


@dataclass(frozen=True)
class Guard:
    """A number of the challenger and what is allowed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def held(self) -> bool:
        """Whether the number is within the limits."""
        return is_within(self.value, self.low, self.high)

    def sentence(self) -> str:
        """What was found and what is allowed."""
        bound = allowed_in_words(self.low, self.high)
        return f"{self.name} ({GUARDS[self.name]}) is {show_number(self.value)}, allowed is {bound}"

    def as_facts(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"held": self.held}


@dataclass(frozen=True)
class Decision:
    """What becomes of a challenger, and why."""

    promoted: bool
    reason: str
    difference: Difference | None
    margin: float
    guards: tuple[Guard, ...]

    def as_facts(self) -> dict[str, Any]:
        """For programs: the JSON line, tags."""
        told = self.difference
        return {
            "promoted": self.promoted,
            "reason": self.reason,
            "difference": told and told.value,
            "interval": told and [told.low, told.high],
            "p_value": told and told.p_value,
            "margin": self.margin,
            "guards": [guard.as_facts() for guard in self.guards],
        }

    def numbers(self) -> dict[str, float]:
        """As metrics."""
        told = {} if self.difference is None else self.difference._asdict()
        numbers = {f"gate/{'difference' if name == 'value' else name}": value for name, value in told.items()}
        return numbers | {f"gate/{guard.name}": guard.value for guard in self.guards}


def halves(outcomes: Outcomes) -> tuple[pl.Series, pl.Series]:
    """The day's visitors in two halves, by a hash that has nothing to do with buckets."""
    visitors = outcomes.rows.select(pl.col("visitor").unique().sort())
    is_first = sha256(pl.concat_str([pl.lit("gate:"), pl.col("visitor")])).str.slice(0, 1).is_in(list("01234567"))
    marked = visitors.with_columns(is_first=is_first)
    return marked.filter("is_first")["visitor"], marked.filter(~pl.col("is_first"))["visitor"]


def decide(
    site: TrainingSite, candidates: Sequence[Candidate], standing: Candidate | None, index_recall: IndexRecall
) -> tuple[Candidate, Decision]:
    """The night's challenger, and what becomes of it. Of equal ones the first is taken."""
    metric = site.training.champion_metric
    if standing is None:
        ranked = sorted(candidates, key=lambda c: -c.outcomes.means().get(metric, 0.0))
        return decide_first(site, ranked, index_recall)
    choice, gate = halves(candidates[0].outcomes)
    best = max(candidates, key=lambda c: c.outcomes.of_visitors(choice).means().get(metric, 0.0))
    return best, decide_between(site, best, standing, gate, index_recall)


def decide_first(
    site: TrainingSite, ranked: Sequence[Candidate], index_recall: IndexRecall
) -> tuple[Candidate, Decision]:
    """The best of models and baselines that holds the guards becomes the first champion."""
    metric = site.training.champion_metric
    broken: list[str] = []
    for candidate in ranked:
        guards = own_guards(site, candidate, index_recall)
        if faults := [guard.sentence() for guard in guards if not guard.held]:
            broken.append(f"{candidate.name}: {'; '.join(faults)}")
            continue
        value = candidate.outcomes.means().get(metric)
        figure = f"{metric} {value:.4f}" if value is not None else f"nothing on the day to measure {metric} on"
        but = f". Better ones broke a guard: {'. '.join(broken)}" if broken else ""
        reason = f"{candidate.name} is the first champion: {figure}{but}"
        return candidate, Decision(True, reason, None, site.training.gate.margin, guards)
    reason = f"there is no champion: each model broke a guard. {'. '.join(broken)}"
    guards = own_guards(site, ranked[0], index_recall)
    return ranked[0], Decision(False, reason, None, site.training.gate.margin, guards)


def decide_between(
    site: TrainingSite, best: Candidate, standing: Candidate, gate: pl.Series, index_recall: IndexRecall
) -> Decision:
    """Whether the challenger takes over, judged on the gate's visitors."""
    metric, margin = site.training.champion_metric, site.training.gate.margin
    ours, theirs = best.outcomes.of_visitors(gate), standing.outcomes.of_visitors(gate)
    difference = paired_difference(ours, theirs, metric)
    least = -margin * theirs.means().get(metric, 0.0)
    guards = (
        *own_guards(site, best, index_recall),
        *compared_guards(site, best.outcomes, standing.outcomes),
        *list_guard(site, ours, theirs),
    )
    faults = [guard.sentence() for guard in guards if not guard.held]
    num_visitors = ours.rows.filter(pl.col("protocol") == metric.split("/")[0]).height
    interval = f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}, p {difference.p_value:.4f}"
    figures = f"{metric} {difference.value:+.4f}, {interval}, {num_visitors} visitors"
    stays = f"version {standing.version.version} stays champion; {best.name}"
    if not difference.low > least:
        fault = f"may lose more than {margin:.4g} of its value" if margin else "is not shown to be better"
        reason = f"{stays} {fault}: {figures}"
    elif faults:
        reason = f"{stays} broke a guard: {'; '.join(faults)}; {figures}"
    else:
        reason = f"{best.name} takes over from version {standing.version.version}: {figures}"
    return Decision(difference.low > least and not faults, reason, difference, margin, guards)


def own_guards(site: TrainingSite, candidate: Candidate, index_recall: IndexRecall) -> tuple[Guard, ...]:
    """What a model must hold whoever stands beside it; what was not measured is not judged."""
    found = []
    share = candidate.outcomes.whole.get(f"list/fallback_share_at_{max(site.training.metric_ks)}")
    if share is not None:
        found.append(Guard("fallback_share", share, high=site.export.checks.fallback_share))
    recall = index_recall(candidate.version)
    if recall is not None:
        found.append(Guard("index_recall", recall, low=site.export.index_recall))
    return tuple(found)


def compared_guards(site: TrainingSite, ours: Outcomes, theirs: Outcomes) -> tuple[Guard, ...]:
    """What the challenger's lists show of the catalogue, over what the champion's show to the same users."""
    k, checks = max(site.training.metric_ks), site.export.checks
    items, gini = f"list/num_items_at_{k}", f"list/gini_at_{k}"
    found = []
    if theirs.whole.get(items) and items in ours.whole:
        kept = ours.whole[items] / theirs.whole[items]
        found.append(Guard("coverage_kept", round(kept, 6), low=checks.coverage_kept))
    if theirs.whole.get(gini, 1.0) < 1 and gini in ours.whole:
        kept = (1 - ours.whole[gini]) / (1 - theirs.whole[gini])
        found.append(Guard("evenness_kept", round(kept, 6), low=checks.evenness_kept))
    return tuple(found)


def list_guard(site: TrainingSite, ours: Outcomes, theirs: Outcomes) -> tuple[Guard, ...]:
    """The lists must not be sure to lose more than the site allows."""
    metric = f"list/any_recall_at_{max(site.training.metric_ks)}"
    value = theirs.means().get(metric)
    if not value or metric not in ours.means():
        return ()
    kept = 1 + paired_difference(ours, theirs, metric).high / value
    return (Guard("list_kept", round(kept, 6), low=site.training.gate.list_kept),)


def below_baselines(
    site: TrainingSite, candidates: Sequence[Candidate], champion: Candidate | None
) -> tuple[Candidate, float] | None:
    """The best of the night's baselines, and champion minus baseline; None where there is nothing to compare.

    A baseline that is champion is compared with the others.
    """
    metric = site.training.champion_metric
    if champion is None or metric not in champion.outcomes.means():
        return None
    recipe = champion.version.tags.get("recipe")
    others = [c for c in candidates if c.is_baseline and c.version.tags.get("recipe") != recipe]
    best = max(others, key=lambda c: c.outcomes.means().get(metric, 0.0), default=None)
    if best is None or number(best.version) == number(champion.version):
        return None
    return best, champion.outcomes.means()[metric] - best.outcomes.means().get(metric, 0.0)
