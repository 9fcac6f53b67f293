from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from training.baselines.popularity import Popularity
from training.batch import gather
from training.recipes import PopularityRecipe

HOUR = 3_600_000_000


def sequences(codes: list[int], hours: list[float]) -> Sequences:
    times = (np.array(hours) * HOUR).astype(np.int64)
    return Sequences(np.array(codes), np.array([0, len(codes)]), times, pl.Series(["v"]))


def fitted(codes: list[int], hours: list[float], half_life_hours: float | None = None) -> Popularity:
    popularity = Popularity(5, PopularityRecipe(half_life=half_life_hours and timedelta(hours=half_life_hours)))
    popularity.fit(sequences(codes, hours), 10 * HOUR)
    return popularity


def test_items_are_counted():
    assert fitted([2, 3, 2, 2, 3, 1], [0] * 6).scores_I.tolist() == [0, 1, 3, 2, 0]


def test_with_a_half_life_an_event_that_old_counts_half():
    scores = fitted([1, 1, 2, 3], [10, 8, 6, 4], half_life_hours=2).scores_I
    assert scores.tolist() == pytest.approx([0, 1.5, 0.25, 0.125, 0])


def test_every_session_gets_the_same_list():
    popularity = fitted([2, 3, 2, 2, 3, 1], [0] * 6)
    top = popularity.recommend(gather(sequences([1, 2], [0, 1]), np.array([0])), 3, 0)
    assert top.codes_RN.tolist() == [[2, 3, 1]] * 2
    assert top.scores_RN.tolist() == [[3, 2, 1]] * 2


def test_items_beyond_the_list_that_tie_with_its_last_one_are_counted():
    popularity = fitted([2, 2, 1, 3, 4], [0] * 5)
    top = popularity.recommend_last(gather(sequences([1], [0]), np.array([0])), 2, 0)
    assert top.codes_RN[0, 0] == 2
    assert top.ties_R.tolist() == [2]
    assert popularity.recommend_last(gather(sequences([1], [0]), np.array([0])), 4, 0).ties_R.tolist() == [0]


def test_padding_is_not_counted():
    popularity = fitted([0, 0, 0, 1], [0] * 4)
    assert popularity.scores_I[0] == 0
    top = popularity.recommend_last(gather(sequences([1], [0]), np.array([0])), 9, 0)
    assert sorted(top.codes_RN[0].tolist()) == [1, 2, 3, 4]
    assert torch.isfinite(top.scores_RN).all()
