import math

import numpy as np
import polars as pl
import pytest
import torch

from features.vocabulary import Vocabulary
from training.evaluation import evaluate_next
from training.exposure import count_exposures, exposure_figures, gini

SCORES = [[0, 0, 0, 0], [0, 1, 3, 2], [0, 2, 1, 3], [0, 6, 5, 4]]


def vocabulary_of(counts: list[int]) -> Vocabulary:
    items = {"item_code": range(1, len(counts) + 1), "item_id": [f"i{n}" for n in range(len(counts))]}
    return Vocabulary(pl.DataFrame(items | {"num_events": counts}))


def plain_gini(counts: list[int]) -> float:
    """Half of the mean absolute difference, relative to the mean."""
    return sum(abs(a - b) for a in counts for b in counts) / (2 * len(counts) * sum(counts))


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 0, 7], [3, 0, 1, 9], [5]], ids=str)
def test_gini_is_half_of_the_mean_difference(counts):
    assert gini(np.array(counts)) == pytest.approx(plain_gini(counts))


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_a_plain_count_over_lists(seed):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 30, 12).tolist()
    lists = [(1 + random.permutation(12)[:5]).tolist() for _ in range(9)]
    exposures = count_exposures(torch.tensor(lists), (1, 3, 5), 13)
    figures = exposure_figures(exposures, (1, 3, 5), vocabulary_of(counts))
    share = [max(count, 1) / sum(max(c, 1) for c in counts) for count in counts]
    for k in (1, 3, 5):
        shown = [item - 1 for items in lists for item in items[:k]]
        assert figures[f"coverage_at_{k}"] == len(set(shown)) / 12
        assert figures[f"gini_at_{k}"] == pytest.approx(plain_gini([shown.count(item) for item in range(12)]))
        assert figures[f"mean_popularity_at_{k}"] == pytest.approx(np.mean([share[item] for item in shown]))
        assert figures[f"novelty_at_{k}"] == pytest.approx(np.mean([-math.log2(share[item]) for item in shown]))


def test_lists_shorter_than_k_count_as_they_are():
    assert count_exposures(torch.tensor([[2, 1]]), (1, 5, 20), 4).tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]]


def test_padding_in_a_list_is_refused():
    with pytest.raises(ValueError, match="padding"):
        count_exposures(torch.tensor([[2, 0]]), (2,), 4)


def test_nothing_listed_has_no_figures():
    assert exposure_figures(np.zeros((1, 4), dtype=np.int64), (5,), vocabulary_of([1, 2, 3])) == {}


def test_every_target_that_could_be_ranked_has_a_list(scripted, sessions_of):
    # lists of two: after a stand b c; after b stand c a. The unknown item breaks no session, c at its end leads to none
    outcomes = evaluate_next(scripted(SCORES), sessions_of([["a", "?", "b", "c"], ["c"]]), (2, 1))
    assert outcomes.whole["all/coverage_at_1"] == pytest.approx(2 / 3)
    assert outcomes.whole["all/coverage_at_2"] == 1
    assert outcomes.whole["all/gini_at_2"] == pytest.approx(plain_gini([1, 1, 2]))
    assert outcomes.whole["all/mean_popularity_at_2"] == pytest.approx(1 / 3)
    assert outcomes.whole["all/novelty_at_2"] == pytest.approx(math.log2(3))
    assert outcomes.means()["all/coverage_at_2"] == 1
