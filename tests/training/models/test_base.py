import numpy as np
import pytest
import torch

from training.models import base
from training.models.base import BLOCK, search_exact, top_of_scores


def plain_top(row: list[float], n: int) -> tuple[list[float], int]:
    """The best scores of the items and how many further items tie with the last."""
    ordered = sorted(row[1:], reverse=True)
    return ordered[:n], ordered.count(ordered[n - 1]) - ordered[:n].count(ordered[n - 1])


def assert_best(scores_RI: torch.Tensor, n: int) -> None:
    top = top_of_scores(scores_RI.clone(), n)
    for row, codes, scores, ties in zip(scores_RI.tolist(), *(column.tolist() for column in top), strict=True):
        best, num_tied = plain_top(row, n)
        assert scores == best
        assert ties == num_tied
        assert [row[code] for code in codes] == scores
        assert len(set(codes)) == n
        assert 0 not in codes


@pytest.mark.parametrize("num_codes", [2, 21, 40 * BLOCK - 1, 40 * BLOCK, 40 * BLOCK + 1, 45 * BLOCK + 37])
@pytest.mark.parametrize("levels", [1, 4, 300, 10**6])
def test_the_best_of_many_columns_are_those_of_a_plain_sort(num_codes, levels):
    generator = torch.Generator().manual_seed(num_codes + levels)
    scores_RI = torch.randint(-levels, levels, (30, num_codes), generator=generator).float()
    scores_RI[:, 0] = 1e9  # padding is no candidate, however it scores
    for n in {min(n, num_codes - 1) for n in (1, 5, 20)}:
        assert_best(scores_RI, n)


def test_the_best_are_found_wherever_they_lie():
    scores_RI = torch.rand(3, 50 * BLOCK + 9)
    scores_RI[0, 3 * BLOCK : 3 * BLOCK + 20] += 5  # all in one block
    scores_RI[1, torch.arange(20) * BLOCK + 7] += 5  # one a block
    scores_RI[2, -9:] += 5  # behind the last whole block
    assert_best(scores_RI, 20)


@pytest.mark.parametrize("place", [1, 33 * BLOCK, 50 * BLOCK + 4])
def test_a_score_that_is_no_number_is_never_lost(place):
    scores_RI = torch.rand(2, 50 * BLOCK + 9)
    scores_RI[1, place] = float("nan")
    assert top_of_scores(scores_RI, 20).scores_RN.isnan().any(1).tolist() == [False, True]


def test_the_search_is_that_of_the_whole_product(monkeypatch):
    monkeypatch.setattr(base, "SCORES_AT_ONCE", 7 * 60 * BLOCK + 1)
    generator = torch.Generator().manual_seed(1)
    states_RD, vectors_ID = (torch.randn(rows, 8, generator=generator) for rows in (23, 60 * BLOCK))
    found = search_exact(states_RD, vectors_ID, 10)
    scores_RI = (states_RD @ vectors_ID.T).double().numpy()
    expected = np.argsort(-scores_RI[:, 1:], axis=1)[:, :10] + 1
    assert np.array_equal(found.codes_RN.numpy(), expected)


def test_no_states_have_no_lists():
    found = search_exact(torch.empty(0, 8), torch.randn(30, 8), 10)
    assert [tuple(column.shape) for column in found] == [(0, 10), (0, 10), (0,)]
