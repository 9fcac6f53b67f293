import itertools
import json

import numpy as np
import polars as pl
import pytest

from pipeline.ids import stable_id
from training.difference import paired_difference
from training.outcomes import Outcomes, load_outcomes

METRIC = "all/next_recall_at_20"


def add(outcomes: Outcomes, gain: pl.Expr) -> Outcomes:
    rows = outcomes.rows.with_columns(pl.col("next_recall_at_20") + gain * pl.col("num_targets"))
    return Outcomes(rows, outcomes.metrics)


def test_a_model_does_not_differ_from_itself(random_outcomes):
    outcomes = random_outcomes(300, seed=3)
    shuffled = Outcomes(outcomes.rows.sample(fraction=1, shuffle=True, seed=1), outcomes.metrics)
    assert paired_difference(outcomes, shuffled, METRIC) == (0, 0, 0, 1)


def test_pairs_tell_a_small_steady_difference(random_outcomes):
    worse = random_outcomes(2000, seed=4)
    found = paired_difference(add(worse, pl.lit(0.02)), worse, METRIC)
    assert found[:3] == pytest.approx((0.02, 0.02, 0.02))
    assert found.p_value == 1e-4
    low, high = worse.intervals()[METRIC]
    assert high - low > 0.02, "unpaired, the difference would drown"


def test_a_visitor_that_only_one_model_could_be_measured_on_counts_for_that_one(random_outcomes):
    rows = random_outcomes(4, seed=5).rows
    one, other = (Outcomes(part, ("next_recall_at_20",)) for part in (rows, rows.head(3)))
    found = paired_difference(one, other, METRIC)
    assert found.value == pytest.approx(one.means()[METRIC] - other.means()[METRIC])


def all_swaps(one: Outcomes, other: Outcomes) -> float:
    """The p-value by looking at every way to swap."""
    ours, theirs = (o.rows.select("next_recall_at_20", "num_targets").rows() for o in (one, other))
    found = []
    for swaps in itertools.product([False, True], repeat=len(ours)):
        first = [b if swap else a for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        second = [a if swap else b for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        means = [sum(s for s, _ in rows) / sum(n for _, n in rows) for rows in (first, second)]
        found.append(abs(means[0] - means[1]))
    return sum(value >= found[0] - 1e-12 for value in found) / len(found)


@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_is_the_share_of_all_swaps_that_differ_as_much(seed, random_outcomes):
    one, other = random_outcomes(9, 2 * seed, recall=0.6), random_outcomes(9, 2 * seed + 1, recall=0.3)
    exact = all_swaps(one, other)
    assert paired_difference(one, other, METRIC).p_value == pytest.approx(exact, abs=0.02)
    assert paired_difference(other, one, METRIC).p_value == pytest.approx(exact, abs=0.02)


def test_where_nothing_differs_p_values_are_spread_evenly(random_outcomes):
    base = random_outcomes(60, seed=8)
    p_values = []
    for seed in range(40):
        noise = pl.Series(np.random.default_rng(seed).normal(0, 0.1, 60))
        p_values.append(paired_difference(add(base, pl.lit(noise)), base, METRIC).p_value)
    assert 0.3 < np.mean(p_values) < 0.7
    assert np.mean(np.array(p_values) < 0.1) < 0.25


def test_outcomes_that_were_saved_are_still_pairs(tmp_path, random_outcomes):
    worse = random_outcomes(200, seed=4)
    better = add(worse, pl.lit(0.02))
    for name, outcomes in (("worse", worse), ("better", better)):
        outcomes.save(tmp_path / name, b"key")
    found = paired_difference(load_outcomes(tmp_path / "better"), load_outcomes(tmp_path / "worse"), METRIC)
    assert found == pytest.approx((0.02, 0.02, 0.02, 1e-4))


def test_outcomes_of_before_stores_had_a_key_pair_with_newer_ones(tmp_path, random_outcomes):
    worse = random_outcomes(200, seed=4)
    add(worse, pl.lit(0.02)).save(tmp_path / "newer", b"key")
    told = {"metrics": json.dumps(worse.metrics), "whole": "{}"}
    worse.rows.with_columns(visitor=stable_id(pl.col("visitor"))).write_parquet(tmp_path / "older", metadata=told)
    newer, older = (load_outcomes(tmp_path / name, b"key") for name in ("newer", "older"))
    assert paired_difference(newer, older, METRIC) == pytest.approx((0.02, 0.02, 0.02, 1e-4))
    with pytest.raises(ValueError, match="the two have none in common"):
        paired_difference(newer, load_outcomes(tmp_path / "older"), METRIC)


def test_a_slice_that_no_session_fell_into_does_not_differ(random_outcomes):
    outcomes = random_outcomes(5, seed=1)
    assert paired_difference(outcomes, outcomes, "all_by_length/10_up/next_recall_at_20") == (0, 0, 0, 1)


@pytest.mark.parametrize("metric", ["all/coverage_at_20", "all/next_recall_at_21", "recall"])
def test_what_is_no_mean_over_targets_is_not_compared(metric, random_outcomes):
    outcomes = random_outcomes(5, seed=1)
    with pytest.raises(ValueError, match=r"cannot be compared by visitors.* none of next_recall_at_20"):
        paired_difference(outcomes, outcomes, metric)


def test_slices_are_compared_on_their_own_targets(random_outcomes):
    def with_slice(outcomes: Outcomes, gain: float) -> Outcomes:
        part = add(outcomes, pl.lit(gain)).rows.head(50).with_columns(protocol=pl.lit("all_by_length/2"))
        return Outcomes(pl.concat([outcomes.rows, part]), outcomes.metrics)

    base = random_outcomes(200, seed=5)
    better, worse = with_slice(base, 0.1), with_slice(base, 0.0)
    assert paired_difference(better, worse, "all_by_length/2/next_recall_at_20")[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert paired_difference(better, worse, METRIC).value == 0
