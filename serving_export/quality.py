"""List QA: what is promised of lists before they are published, and who holds them to it.

Reads   the staged files of a release, `events` and `items` of its day, the figures of the last release
Writes  `list_checks`: every rule with its value and limit, also of lists that were not published

Limits of the rules that have one are in the site file under `export.checks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import polars as pl

from pipeline.checkpoint import allowed_in_words, is_within, show_number
from pipeline.errors import ContractError
from pipeline.publish import StagedFile, Store
from pipeline.terminal import log
from serving_export.reader import facts_of
from serving_export.tables import LIST_CHECKS, RECOMMENDATIONS
from serving_export.tally import OF_ROWS, Tally, tally_lists
from training.settings import TrainingSite

RULES = {
    "users_listed": "every active user has a list, unless nothing is left to show them",
    "users_active": "nobody else has one",
    "ranks_dense": "the ranks of a list are 1 to n, in this order, each once",
    "items_once": "no item stands twice in a list",
    "items_known": "every item is in `items`",
    "items_allowed": "no item is unavailable or barred from its channel",
    "items_unseen": "no item is one that the user had before, as far as the channel leaves these out",
    "scores_finite": "every score is a number",
    "scores_fall": "inside a list and source no score is higher than the one before",
    "fallback_share": "share of rows with popular items, where a model serves",
    "coverage_kept": "items that are listed to anyone, over those of the last release",
    "evenness_kept": "1 - Gini of how often items are listed, over that of the last release",
}
"""Rule -> its promise."""


@dataclass(frozen=True)
class Verdict:
    """What became of a rule in a channel."""

    channel: str
    rule: str
    value: float
    low: float | None = None
    high: float | None = None
    examples: tuple[str, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the value is within the limits."""
        return is_within(self.value, self.low, self.high)

    def sentence(self) -> str:
        """The rule, what was found, what is allowed, and some of what broke it."""
        bound = allowed_in_words(self.low, self.high)
        like = f", like {'; '.join(self.examples)}" if self.examples else ""
        promise = f"{self.rule} in {self.channel} ({RULES[self.rule]})"
        return f"{promise}: found {show_number(self.value)}, allowed {bound}{like}"


def check_release(
    site: TrainingSite, store: Store, staged: Sequence[StagedFile], day: date, *, has_model: bool
) -> dict[str, Any]:
    """Hold staged lists to their contract; return the release's figures by channel.

    Raises ContractError that names rules, values, limits and examples; `list_checks` keeps the verdicts either way.
    """
    tallies = tally_lists(site, store, staged, day)
    last = last_figures(store)
    verdicts = [v for name, tally in tallies.items() for v in judge(site, name, tally, last.get(name), has_model)]
    keep(store, day, verdicts)
    broken = [verdict for verdict in verdicts if not verdict.held]
    if broken:
        told = "\n  ".join(verdict.sentence() for verdict in broken)
        raise ContractError(
            f"{site.name}: the lists of {day} broke {len(broken)} of {len(verdicts)} promises. Nothing was published, "
            f"readers keep the last release. Limits are in the site file under export.checks:\n  {told}"
        )
    log.info("list QA: %d promises held", len(verdicts))
    return {name: tally.figures() for name, tally in tallies.items()}


def last_figures(store: Store) -> dict[str, Any]:
    """The figures of the release that readers see, by channel; nothing before the first one."""
    table = store.open(RECOMMENDATIONS)
    try:
        told = facts_of(table)["quality"] if table else None
    except LookupError:  # a table that was made, and never filled
        return {}
    return dict(told or {})


def judge(
    site: TrainingSite, channel: str, tally: Tally, last: Mapping[str, float] | None, has_model: bool
) -> list[Verdict]:
    """The verdicts on a channel's lists; what is compared with the last release is not judged without one."""
    limits, now = site.export.checks, tally.figures()
    verdicts = [
        Verdict(channel, rule, tally.broken[rule], high=0, examples=tuple(tally.examples[rule])) for rule in OF_ROWS
    ]
    if has_model:
        verdicts.append(Verdict(channel, "fallback_share", now["fallback_share"], high=limits.fallback_share))
    if last and last["items"]:
        kept = now["items"] / last["items"]
        verdicts.append(Verdict(channel, "coverage_kept", round(kept, 6), low=limits.coverage_kept))
    if last and last["gini"] < 1:
        kept = (1 - now["gini"]) / (1 - last["gini"])
        verdicts.append(Verdict(channel, "evenness_kept", round(kept, 6), low=limits.evenness_kept))
    return verdicts


def keep(store: Store, day: date, verdicts: Sequence[Verdict]) -> None:
    """Write the verdicts of a night's lists."""
    rows = [asdict(verdict) | {"data_through": day, "held": verdict.held} for verdict in verdicts]
    frame = pl.DataFrame(rows, schema=dict(LIST_CHECKS.columns)) if rows else LIST_CHECKS.empty()
    store.replace(LIST_CHECKS, frame, {"data_through": [day]})
