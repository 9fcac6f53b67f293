"""Seconds to evaluate a model on a large day, beside the bare product and topk of the same size.

    python benchmarks/evaluation.py [--targets 200000] [--items 50000] [--threads 2]

A GRU of 128 units with seeded random weights is evaluated on made-up sessions (popular items first): ranks, exposures,
slices, bounds, a paired comparison with a second model, and the shuffle test. The reference, in the same process, is
what any exact evaluation has to do at least: scores of all items and the best 20, without ranks, ties or sums.
Prints a Markdown table; CPU seconds are those to trust on a machine that others use, too.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import numpy as np
import polars as pl
import torch

from features.vocabulary import Vocabulary
from training.bundle import Bundle, build
from training.difference import paired_difference
from training.evaluation import evaluate_next
from training.order import shuffle_test
from training.recipes import SequenceRecipe

DAY = datetime(2026, 3, 5, tzinfo=UTC)
KS = (1, 5, 10, 20)
MEAN_LENGTH = 4
ROWS_AT_ONCE = 1024
Result = TypeVar("Result")


def main() -> None:
    """Measure, then print Markdown."""
    parser = argparse.ArgumentParser(description="Measure the evaluation of one model on a large day.")
    for name, default in (("targets", 200_000), ("items", 50_000), ("units", 128), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    sessions, vocabulary = make_day(told.targets, told.items)
    one, other = (random_bundle(vocabulary, told.units, seed) for seed in (1, 2))
    rows: list[tuple[str, float, float]] = []

    def measured(name: str, work: Callable[[], Result]) -> Result:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        rows.append((name, time.perf_counter() - wall, time.process_time() - cpu))
        print(f"{name}: {rows[-1][1]:.1f} s", file=sys.stderr)
        return result

    measured(
        "*reference:* product and topk 20, nothing else", lambda: bare_search(told.targets, told.items, told.units)
    )
    ours = measured("ranks, exposures, slices of a GRU", lambda: evaluate_next(one, sessions, KS))
    numbers = measured("all numbers, with bounds", ours.numbers)
    sample = sessions.sample(fraction=0.5, seed=1)
    theirs = evaluate_next(other, sample, KS)
    measured("one paired comparison", lambda: paired_difference(ours, theirs, "all/next_mrr_at_20"))
    measured("shuffle test", lambda: shuffle_test(one, sessions, KS[-1]))
    print(report(rows, numbers, told, ours.rows["visitor"].n_unique()))


def make_day(num_targets: int, num_items: int) -> tuple[pl.DataFrame, Vocabulary]:
    """Sessions with as many targets, two a visitor, and a vocabulary of items whose events fall as 1 / place."""
    random = np.random.default_rng(7)
    num_sessions = num_targets // (MEAN_LENGTH - 1)
    lengths = 2 + random.geometric(1 / (MEAN_LENGTH - 1), num_sessions) - 1
    num_events = int(lengths.sum())
    popularity = 1 / np.arange(1, num_items + 1)
    items = random.choice(num_items, num_events, p=popularity / popularity.sum())
    at = pl.Series("offsets_seconds", np.arange(num_events) % 600, dtype=pl.Float64)
    events = pl.DataFrame({"session": np.repeat(np.arange(num_sessions), lengths), "item": items}).with_columns(at)
    sessions = events.group_by("session", maintain_order=True).agg(
        pl.format("i{}", "item").alias("item_ids"), "offsets_seconds"
    )
    sessions = sessions.select(
        pl.format("s{}", "session").alias("session_id"),
        pl.format("v{}", pl.col("session") // 2).alias("visitor"),
        "item_ids",
        "offsets_seconds",
        started_at=pl.lit(DAY) + pl.duration(seconds=pl.col("session") % 80_000),
    )
    codes = pl.int_range(1, num_items + 1, dtype=pl.Int64, eager=True)
    counts = pl.Series((1e6 * popularity).astype(np.int64) + 1)
    ids = pl.select(pl.format("i{}", codes - 1)).to_series()
    return sessions, Vocabulary(pl.DataFrame({"item_code": codes, "item_id": ids, "num_events": counts}))


def random_bundle(vocabulary: Vocabulary, units: int, seed: int) -> Bundle:
    """A GRU that has learnt nothing."""
    recipe = SequenceRecipe(encoder="gru", hidden_size=units, seed=seed)
    as_of = int(DAY.timestamp()) * 1_000_000
    return Bundle(build(recipe, vocabulary.num_codes).eval(), vocabulary, "gru", recipe, date(2026, 3, 4), as_of)


@torch.inference_mode()
def bare_search(num_targets: int, num_items: int, units: int) -> None:
    """The scores of all items for random states, and the best 20 of each."""
    generator = torch.Generator().manual_seed(1)
    states_RD, vectors_ID = (torch.randn(rows, units, generator=generator) for rows in (num_targets, num_items + 1))
    for chunk_RD in states_RD.split(ROWS_AT_ONCE):
        (chunk_RD @ vectors_ID.T).topk(KS[-1], dim=1)


def report(rows: list[tuple[str, float, float]], numbers: dict[str, float], told: Any, num_visitors: int) -> str:
    """What was measured, as Markdown."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    lines = [f"| {name} | {wall:.1f} | {cpu:.1f} |" for name, wall, cpu in rows]
    size = (
        f"{numbers['all/num_targets']:,.0f} targets of {num_visitors:,} visitors x {told.items:,} items, "
        f"{told.units} units, {told.threads} threads; {len(numbers)} numbers; peak {peak / 1e9:.2f} GB."
    )
    return "\n".join([size, "", "| work | seconds | core-seconds |", "| --- | --: | --: |", *lines])


if __name__ == "__main__":
    main()
