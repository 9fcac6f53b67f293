"""Whether one model is better than another on the same visitors: difference, interval, p-value.

The interval is a paired Poisson bootstrap: the same weights of the visitors for both models. The p-value is a paired
permutation test (Fisher's sign-flip; Smucker, Allan & Carterette, CIKM 2007 recommend it for retrieval metrics): if
the two models were alike, it would be chance which of the two outcomes of a visitor carries which name.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from training.outcomes import Floats, Outcomes, resample

NUM_PERMUTATIONS = 9_999
VISITORS_AT_ONCE = 1024  # whose coin tosses are held for all permutations: 82 MB
ROUNDING = 1e-12


class Difference(NamedTuple):
    """Challenger minus incumbent in one metric."""

    value: float
    low: float
    """With `high`: the 95 % interval."""
    high: float
    p_value: float
    """Two-sided; never below 1 / (NUM_PERMUTATIONS + 1)."""


def paired_difference(challenger: Outcomes, incumbent: Outcomes, metric: str, seed: int = 1) -> Difference:
    """How much better the challenger is in one metric, by its full name (`all/next_mrr_at_20`, also of a slice).

    Raises ValueError for a name that is no mean over targets. Where there were no targets, as for a slice that no
    session fell into, the difference is 0 and the p-value 1.
    """
    pairs_V4 = paired_sums(challenger, incumbent, metric)
    value = differences(pairs_V4.sum(0, keepdims=True))[0]
    low, high = np.quantile(differences(resample(pairs_V4, seed)), [0.025, 0.975])
    return Difference(float(value), float(low), float(high), permutation_p_value(pairs_V4, seed))


def paired_sums(challenger: Outcomes, incumbent: Outcomes, metric: str) -> Floats:
    """(visitors, 4) the challenger's sum and number of targets, then the incumbent's; 0 for a visitor it has not."""
    protocol, _, name = metric.rpartition("/")
    known = sorted({*challenger.metrics, *incumbent.metrics})
    if name not in known:
        raise ValueError(f"{metric} cannot be compared by visitors: {name!r} is none of {', '.join(known)}")
    if not share_visitors(challenger.rows, incumbent.rows):
        raise ValueError(
            f"{metric} cannot be compared by visitors: the two have none in common. Files of before stores had a key "
            "name them otherwise; read both with load_outcomes(path, outcome_key(store))"
        )
    ours, theirs = (
        outcomes.rows.filter(pl.col("protocol") == protocol).select(
            "visitor", sum=pl.col(name) if name in outcomes.rows.columns else pl.lit(0.0), count="num_targets"
        )
        for outcomes in (challenger, incumbent)
    )
    pairs = ours.join(theirs, on="visitor", how="full", coalesce=True, suffix="_theirs").sort("visitor")
    numbers = pairs.select("sum", "count", "sum_theirs", "count_theirs").cast(pl.Float64).fill_null(0.0)
    return numbers.to_numpy()


def share_visitors(ours: pl.DataFrame, theirs: pl.DataFrame) -> bool:
    """Whether anyone is in both; so it is where one of them is empty."""
    if ours.is_empty() or theirs.is_empty():
        return True
    return not ours.join(theirs, on="visitor", how="semi").head(1).is_empty()


def differences(totals_R4: Floats) -> Floats:
    """(R) differences of the two means."""
    means: Floats = totals_R4[:, [0, 2]] / np.maximum(totals_R4[:, [1, 3]], 1)
    return means[:, 0] - means[:, 1]


def permutation_p_value(pairs_V4: Floats, seed: int) -> float:
    """The share of permutations that differ at least as much, the one at hand counted in; two-sided.

    A permutation swaps the two models' outcomes for each visitor or leaves them, both with chance 1/2.
    """
    kept_V2, swapped_V2 = pairs_V4[:, :2], pairs_V4[:, 2:]
    moves = (kept_V2 != swapped_V2).any(1)
    halves_V2 = (kept_V2 - swapped_V2)[moves] / 2
    middle_2 = pairs_V4.sum(0).reshape(2, 2).sum(0) / 2
    shifts_R2 = -halves_V2.sum(0) + 2 * chosen_sums(halves_V2, seed)
    permuted = differences(np.hstack([middle_2 + shifts_R2, middle_2 - shifts_R2]))
    observed = abs(differences(pairs_V4.sum(0, keepdims=True))[0])
    return float((1 + (np.abs(permuted) >= observed - ROUNDING).sum()) / (1 + NUM_PERMUTATIONS))


def chosen_sums(values_V2: Floats, seed: int) -> Floats:
    """(NUM_PERMUTATIONS, 2) sums of the rows that were chosen, each with chance 1/2."""
    random = np.random.default_rng(seed)
    sums_R2 = np.zeros((NUM_PERMUTATIONS, values_V2.shape[1]))
    for start in range(0, len(values_V2), VISITORS_AT_ONCE):
        part_V2 = values_V2[start : start + VISITORS_AT_ONCE]
        bits = random.integers(0, 256, (NUM_PERMUTATIONS, -(-len(part_V2) // 8)), dtype=np.uint8)
        sums_R2 += np.unpackbits(bits, axis=1, count=len(part_V2)).astype(np.float64) @ part_V2
    return sums_R2
