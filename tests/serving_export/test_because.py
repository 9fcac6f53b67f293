"""What drew items in, for exported lists: as much as fits in the time, the rest told and left as it was."""

from datetime import date

import numpy as np
import polars as pl
import pytest

from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from serving_export import because
from serving_export.because import Budget, find_because
from serving_export.filling import MODEL, NOTHING, RULE, ChannelRules, Lists, UserItems
from training.baselines.markov import Markov
from training.bundle import Bundle, build
from training.recipes import MarkovRecipe

NEVER = float("inf")


def sequences_of(sessions: list[list[int]]) -> Sequences:
    codes = np.array([code for session in sessions for code in session], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(session) for session in sessions])]).astype(np.int64)
    return Sequences(codes, offsets, np.arange(len(codes)), pl.Series(["v"] * len(sessions), dtype=pl.String))


@pytest.fixture
def bundle() -> Bundle:
    """Rules: 1 is followed by 2, 3 by 4."""
    recipe = MarkovRecipe()
    recommender = build(recipe, 6)
    assert isinstance(recommender, Markov)
    recommender.fit(sequences_of([[1, 2], [1, 2], [3, 4], [5, 5]]), 0)
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [list("abcde")]}), 1)
    return Bundle(recommender, vocabulary, "markov", recipe, date(2026, 3, 1), 0)


def lists_of(codes_UN: list[list[int]], sources_UN: list[list[int]]) -> Lists:
    rules = ChannelRules("home", len(codes_UN[0]), np.ones(6, bool), np.full(6, -1), None)
    lists = Lists(rules, UserItems(np.zeros(0, np.int64), np.zeros(len(codes_UN) + 1, np.int64)))
    lists.codes_UN[:], lists.sources_UN[:] = codes_UN, sources_UN
    return lists


def test_an_item_is_there_because_of_the_event_it_would_lose_most_by(bundle):
    sequences = sequences_of([[3, 1], [1, 3], []])
    one = lists_of([[2, 4], [4, 2], [0, 0]], [[MODEL, MODEL], [MODEL, RULE], [0, 0]])
    other = lists_of([[4], [5], [1]], [[MODEL], [MODEL], [3]])
    told = find_because(bundle, sequences, [one, other], NEVER)
    assert told == {"users_explained": 2, "users_out_of_time": 0}
    assert one.because_UN.tolist() == [[1, NOTHING], [3, 0], [0, 0]], "without 1 the list would be that of 3"
    assert other.because_UN.tolist() == [[NOTHING], [NOTHING], [0]]


def test_users_with_few_events_come_first_and_the_others_are_counted(bundle, monkeypatch):
    sequences = sequences_of([[1, 5, 5, 1], [1], [3, 1]])
    lists = lists_of([[2], [2], [2]], [[MODEL]] * 3)
    monkeypatch.setattr(because, "EVENTS_AT_ONCE", 1)
    clock = iter([0, 1, 2])
    monkeypatch.setattr(because.time, "monotonic", lambda: next(clock))
    assert find_because(bundle, sequences, [lists], 2) == {"users_explained": 2, "users_out_of_time": 1}
    assert lists.because_UN[:, 0].tolist() == [0, 1, 1]


def test_time_that_one_part_leaves_is_for_the_others(monkeypatch):
    now = 100.0
    monkeypatch.setattr(because.time, "monotonic", lambda: now)
    budget = Budget(30, 3)
    assert budget.next_deadline() == 110
    now = 104.0
    budget.part_done()
    assert budget.next_deadline() == 104 + 13
    now = 200.0
    budget.part_done()
    assert budget.next_deadline() == 200
