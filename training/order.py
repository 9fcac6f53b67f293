"""Whether the order of events tells a model anything: the shuffle test.

Sequence models cannot be better than others on a log without order, and on such a log their comparison means little
(Klenitskiy et al., "Does It Look Sequential?", RecSys 2024). So the same targets are ranked twice: after the session as
it was, and after its events in random order. One target a session, its last known event, keeps this as cheap as an
evaluation; sessions need two known events before it. The test asks a model: one that does not look at order, popularity
for example, cannot tell.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from features.sequences import Integers, Sequences, encode_sessions
from training.batch import all_batches
from training.bundle import Bundle
from training.difference import Difference, paired_difference
from training.evaluation import SESSIONS_AT_ONCE, rank_targets, sum_by_visitor
from training.outcomes import Outcomes

SIGNIFICANT = 0.05


class ShuffleTest(NamedTuple):
    """MRR at k of the same targets after histories as they were and after shuffled ones."""

    k: int
    in_order: float
    shuffled: float
    difference: Difference
    """In order minus shuffled, over visitors."""
    num_targets: int

    def numbers(self) -> dict[str, float]:
        """As metrics by their full names."""
        return {
            f"order/next_mrr_at_{self.k}": self.in_order,
            f"order/shuffled_next_mrr_at_{self.k}": self.shuffled,
            "order/p_value": self.difference.p_value,
            "order/num_targets": float(self.num_targets),
        }

    def sentence(self, model: str) -> str:
        """What it means, for a log."""
        if self.num_targets == 0:
            return f"whether order counts cannot be told: no session with two events that {model} knows before a target"
        counts = self.difference.value > 0 and self.difference.p_value < SIGNIFICANT
        verdict = (
            f"the order of events tells {model} something" if counts else f"no sign that order tells {model} anything"
        )
        difference, low, high, p_value = self.difference
        return (
            f"{verdict}: MRR@{self.k} is {self.in_order:.4f} after sessions as they were, {self.shuffled:.4f} after "
            f"the same events shuffled (difference {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}, "
            f"p {p_value:.4f}, {self.num_targets} targets)"
        )


def shuffle_test(bundle: Bundle, sessions: pl.DataFrame, k: int, seed: int = 1) -> ShuffleTest:
    """Rank the last known event of each session (rows of the `sessions` table) after its history and a shuffled one."""
    known = encode_sessions(sessions, bundle.vocabulary).known_only().at_least(3)
    targets, histories = known.item_codes[known.offsets[1:] - 1], without_last(known)
    metric = f"next_mrr_at_{k}"
    in_order, shuffled = (
        outcomes_of(rank_last(bundle, told, targets, k), known.visitors, metric)
        for told in (histories, shuffle_events(histories, seed))
    )
    name = f"order/{metric}"
    kept, lost = (outcomes.means().get(name, 0.0) for outcomes in (in_order, shuffled))
    return ShuffleTest(k, kept, lost, paired_difference(in_order, shuffled, name, seed), len(targets))


def without_last(sequences: Sequences) -> Sequences:
    """Every session without its last event; sessions must not be empty."""
    kept = np.ones(len(sequences.item_codes), dtype=bool)
    kept[sequences.offsets[1:] - 1] = False
    return sequences.only(kept)


def shuffle_events(sequences: Sequences, seed: int) -> Sequences:
    """The items of each session in random order, with what is told of their events; its times stay in theirs."""
    random = np.random.default_rng(seed).random(len(sequences.item_codes))
    order = np.lexsort((random, sequences.session_of_event()))
    return replace(sequences, item_codes=sequences.item_codes[order], event_columns=sequences.columns_at(order))


def rank_last(bundle: Bundle, histories: Sequences, targets: Integers, k: int) -> Integers:
    """(S) the rank of each session's target after all of its history."""
    ranks = [np.empty(0, dtype=np.int64)]
    for chosen, batch in all_batches(histories, SESSIONS_AT_ONCE):
        top = bundle.recommender.recommend_last(batch, k, bundle.as_of)
        ranks.append(rank_targets(top, targets[chosen]))
    return np.concatenate(ranks)


def outcomes_of(ranks: Integers, visitors: pl.Series, metric: str) -> Outcomes:
    """Ranks as outcomes of a protocol of their own."""
    targets = pl.DataFrame({"rank": ranks, "visitor": visitors, "is_cold": np.zeros(len(ranks), dtype=bool)})
    return Outcomes(sum_by_visitor(targets, pl.lit("order"), (metric,)), (metric,))
