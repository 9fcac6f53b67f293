"""What a visitor's history can be worth in the simulated shop: readers who know the shop, and differ in what they know.

    python benchmarks/history_bound.py [--day 2026-03-07] [--visits 1500]

Each reader knows the shop's equation and every number in it (pipeline/simulate.py), but not what a visit is for: intent
and focus category are inferred event by event (Bayes). One knows nothing of the visitor, one counts the categories of
earlier visits, one knows what was put in the cart on earlier days, and one knows both. No model can be expected to gain
more from a history than the last gains on the first. Asked are visitors with three or more earlier visits.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from datetime import date

import numpy as np

from pipeline.simulate import (
    CATEGORIES,
    INTENT_SHARES,
    INTENTS,
    Shelf,
    Shop,
    SimulatedDay,
    Visits,
    World,
    draw_world,
    next_item_probabilities,
    simulate_days,
)

AT_ONCE, RESAMPLES, BEST = 64, 1000, 20
SEEN_WEIGHT, PRIOR = 0.3, 0.25
"""How much one seen event and the shop's own prior tell of a taste, in counts of a Dirichlet distribution."""


def main() -> None:
    """Print a table: each reader's mrr@20, and its gain on the one who knows nothing."""
    parser = argparse.ArgumentParser(description="Measure what a history can be worth in the simulated shop.")
    parser.add_argument("--day", type=date.fromisoformat, default=date(2026, 3, 7))
    parser.add_argument("--visits", type=int, default=1500)
    told = parser.parse_args()
    world = draw_world(Shop())
    day, visits_V, seen_VC = look_at(world, told.day)
    rng = np.random.default_rng(1)
    asked = np.flatnonzero(visits_V[day.visits.visitor_N] >= 3)
    asked = rng.choice(asked, min(told.visits, len(asked)), replace=False)
    print("\n".join(report(day, asked, seen_VC, world)))


def look_at(world: World, wanted: date) -> tuple[SimulatedDay, np.ndarray, np.ndarray]:
    """The day, and how often each visitor came before it and had events of each category."""
    num_visitors = world.shop.num_visitors + 1
    visits_V, seen_VC = np.zeros(num_visitors, int), np.zeros((num_visitors, len(CATEGORIES)))
    for day in simulate_days(world, "UTC", wanted):
        if day.date == wanted:
            break
        rows, steps = np.nonzero(day.visits.items_NT >= 0)
        np.add.at(visits_V, day.visits.visitor_N, 1)
        np.add.at(seen_VC, (day.visits.visitor_N[rows], world.categories_I[day.visits.items_NT[rows, steps]]), 1)
    visits_V[-1], seen_VC[-1] = 0, 0  # passers-by are nobody's earlier visits
    return day, visits_V, seen_VC


def report(day: SimulatedDay, asked: np.ndarray, seen_VC: np.ndarray, world: World) -> Iterator[str]:
    """A row for each reader; intervals by bootstrap over visits, paired."""
    usual_VC = np.broadcast_to(world.tastes_VC[-1], world.tastes_VC.shape)
    counted_VC = SEEN_WEIGHT * seen_VC + PRIOR
    counted_VC = counted_VC / counted_VC.sum(axis=1, keepdims=True)
    popular_VI = np.broadcast_to(day.shelf.popularity_I, day.shelf.liked_VI.shape)
    readers = {
        "nothing of the visitor": replace(day.shelf, tastes_VC=usual_VC, liked_VI=popular_VI),
        "categories of earlier visits": replace(day.shelf, tastes_VC=counted_VC, liked_VI=popular_VI),
        "what was carted on earlier days": replace(day.shelf, tastes_VC=usual_VC),
        "both": replace(day.shelf, tastes_VC=counted_VC),
    }
    gains = {name: reciprocal_ranks(shelf, day.visits, asked) for name, shelf in readers.items()}
    base_N2 = gains["nothing of the visitor"]
    picks = np.random.default_rng(1).integers(0, len(asked), (RESAMPLES, len(asked)))
    yield "| a reader who knows the shop and | mrr@20 | gain | 95 % interval |"
    yield "| --- | --: | --: | --: |"
    for name, found_N2 in gains.items():
        gain = mean_of(found_N2) / mean_of(base_N2) - 1
        drawn = [mean_of(found_N2[pick]) / mean_of(base_N2[pick]) - 1 for pick in picks]
        low, high = np.quantile(drawn, [0.025, 0.975])
        yield f"| {name} | {mean_of(found_N2):.4f} | {gain:+.1%} | {low:+.1%} to {high:+.1%} |"


def mean_of(found_N2: np.ndarray) -> float:
    """Sum of reciprocal ranks by number of targets."""
    return float(found_N2[:, 0].sum() / found_N2[:, 1].sum())


def reciprocal_ranks(shelf: Shelf, visits: Visits, asked: np.ndarray) -> np.ndarray:
    """(N, 2) of each visit the sum of 1 / rank within the best 20, and its targets: all events but the first."""
    return np.concatenate([read(shelf, visits, asked[n : n + AT_ONCE]) for n in range(0, len(asked), AT_ONCE)])


def read(shelf: Shelf, visits: Visits, rows: np.ndarray) -> np.ndarray:
    """(N, 2) as above, event by event of some visits."""
    taste_NC = shelf.tastes_VC[visits.visitor_N[rows]]
    belief_NHC = INTENT_SHARES[None, :, None] * taste_NC[:, None, :]
    found_N2 = np.zeros((len(rows), 2))
    for step in range(visits.num_events_N[rows].max()):
        here = np.flatnonzero(visits.num_events_N[rows] > step)
        chances_NHCI = chances_of_all(shelf, visits, rows[here], step)
        real_N = visits.items_NT[rows[here], step]
        if step:
            chances_NI = (belief_NHC[here][..., None] * chances_NHCI).sum(axis=(1, 2))
            rank_N = (chances_NI >= chances_NI[np.arange(len(here)), real_N][:, None]).sum(axis=1)
            found_N2[here] += np.stack([(rank_N <= BEST) / rank_N, np.ones(len(here))], axis=1)
        belief_NHC[here] *= chances_NHCI[np.arange(len(here)), :, :, real_N]
        belief_NHC[here] /= belief_NHC[here].sum(axis=(1, 2), keepdims=True)
    return found_N2


def chances_of_all(shelf: Shelf, visits: Visits, rows: np.ndarray, step: int) -> np.ndarray:
    """(N, intents, categories, I) the chance of each item, were the visit for this intent and category."""
    nothing = np.full(len(rows), -1)
    previous = visits.items_NT[rows, step - 1] if step else nothing
    previous_type = visits.types_NT[rows, step - 1] if step else nothing
    found = np.empty((len(rows), len(INTENTS), len(CATEGORIES), len(shelf.popularity_I)))
    everyone = np.arange(len(rows))
    for intent in range(len(INTENTS)):
        for focus in range(len(CATEGORIES)):
            supposed = replace(
                visits,
                visitor_N=visits.visitor_N[rows],
                intent_N=np.full(len(rows), intent),
                focus_N=np.full(len(rows), focus),
            )
            found[:, intent, focus] = next_item_probabilities(shelf, supposed, everyone, previous, previous_type)
    return found


if __name__ == "__main__":
    main()
