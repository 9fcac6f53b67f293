"""How far days are from the days before them, on counts that are made up."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from serving_export.day_counts import GAP_STEPS, lengths_and_gaps
from serving_export.shifts import Shift, days_before, gaps_apart, lengths_apart, shares_apart, shift

FIRST = date(2026, 3, 1)


def days(num: int) -> list[date]:
    return [FIRST + timedelta(days=n) for n in range(num)]


def test_shares_are_apart_by_jensen_shannon():
    assert shares_apart(np.array([5, 5, 0]), np.array([50, 50, 0])) == 0
    assert shares_apart(np.array([5, 0]), np.array([0, 9])) == pytest.approx(1)
    # by hand: p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): (log2(4/3) + 1/2 log2(2/3) + 1/2 log2 2) / 2
    told = (np.log2(4 / 3) + (np.log2(2 / 3) + 1) / 2) / 2
    assert shares_apart(np.array([4, 0]), np.array([3, 3])) == pytest.approx(np.sqrt(told))


def test_lengths_are_apart_by_how_often_they_doubled():
    one, two, four = np.zeros((3, 9), int)
    one[2], two[4], four[[2, 4]] = 10, 70, 5
    assert lengths_apart(one, two) == pytest.approx(1)
    assert lengths_apart(one, four) == pytest.approx(1 / 2)
    gaps_1, gaps_2 = np.zeros((2, 200), int)
    gaps_1[5], gaps_2[5 + 3 * GAP_STEPS] = 1, 1
    assert gaps_apart(gaps_1, gaps_2) == pytest.approx(3)


def test_of_many_days_before_one_odd_day_is_not_usual():
    odd, small = [90, 10], [55, 45]
    counts = np.array([[50, 50]] * 8 + [odd, [50, 50], small, [50, 50], [50, 50], [52, 48], [60, 40]])
    found = shift(counts, days(15), days(15)[-1], 6, shares_apart)
    told = [shares_apart(counts[n], counts[n - 6 : n].sum(0)) for n in range(8, 14)]
    assert found.usual == pytest.approx(sorted(told)[-2], abs=1e-6)
    assert found.usual < max(told) / 2


def test_the_largest_shift_of_few_days_before_is_usual():
    counts = np.array([[50, 50]] * 6 + [[60, 40]] + [[50, 50]] + [[90, 10]])
    found = shift(counts, days(9), FIRST + timedelta(days=8), 4, shares_apart)
    odd = shares_apart(np.array([60, 40]), np.array([50, 50]))
    assert found.usual == pytest.approx(odd, abs=1e-6)
    assert found.value > 4 * odd


def test_what_is_usual_needs_days_enough():
    counts = np.array([[50, 50]] * 9)
    last = [shift(counts[:n], days(n), days(n)[-1], 4, shares_apart) for n in range(1, 9)]
    assert [told.value for told in last] == [None] + [0.0] * 7
    assert [told.usual for told in last] == [None] * 6 + [0.0, 0.0]


def test_a_day_without_anything_to_count_has_no_shift():
    counts = np.array([[5, 5], [5, 5], [0, 0]])
    assert shift(counts, days(3), days(3)[-1], 2, shares_apart) == Shift(None, None)


def test_only_days_of_the_window_count():
    assert days_before(days(9), FIRST + timedelta(days=8), 3) == days(9)[5:8]
    assert days_before([days(9)[0]], FIRST + timedelta(days=8), 3) == []


def test_gaps_stay_inside_their_session():
    lengths, gaps = lengths_and_gaps(pl.Series([[0.0, 5.0, 65.0], [0.0], [0.0, 1.0]]))
    assert lengths.tolist() == [3, 1, 2]
    assert gaps.tolist() == [5.0, 60.0, 1.0]
    lengths, gaps = lengths_and_gaps(pl.Series([], dtype=pl.List(pl.Float64)))
    assert (lengths.tolist(), gaps.tolist()) == ([], [])
