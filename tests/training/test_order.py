from datetime import date

import numpy as np
import pytest

from features.sequences import Sequences, encode_sessions
from features.vocabulary import learn_vocabulary
from training.baselines.markov import Markov
from training.bundle import Bundle
from training.order import shuffle_events, shuffle_test, without_last
from training.recipes import MarkovRecipe

SCORES = [[0, 0, 0, 0], [0, 1, 3, 2], [0, 2, 1, 3], [0, 6, 5, 4]]


@pytest.fixture
def sequences(sessions_of):
    items = [["a", "b", "c", "d", "e"], ["f", "g", "h"], ["i", "j", "k", "l"]]
    sessions = sessions_of(items)
    return encode_sessions(sessions, learn_vocabulary(sessions, 1))


def split(sequences: Sequences) -> list[list[int]]:
    return [part.tolist() for part in np.split(sequences.item_codes, sequences.offsets[1:-1])]


def test_the_last_event_is_taken_off_each_session(sequences):
    shorter = without_last(sequences)
    assert split(shorter) == [session[:-1] for session in split(sequences)]
    assert len(shorter.occurred_at) == len(shorter.item_codes) == shorter.offsets[-1]


def test_shuffling_keeps_what_a_session_holds_and_its_times(sequences):
    found = [shuffle_events(sequences, seed) for seed in range(40)]
    for shuffled in found:
        assert [sorted(session) for session in split(shuffled)] == [sorted(session) for session in split(sequences)]
        assert np.array_equal(shuffled.occurred_at, sequences.occurred_at)
    assert {tuple(split(shuffled)[1]) for shuffled in found} == {
        tuple(split(sequences)[1][place] for place in places)
        for places in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
    }, "every order comes about, also with another last event"


def markov(train) -> Bundle:
    vocabulary = learn_vocabulary(train, 1)
    recommender = Markov(vocabulary.num_codes, MarkovRecipe())
    recommender.fit(encode_sessions(train, vocabulary), 0)
    return Bundle(recommender, vocabulary, "markov", MarkovRecipe(), date(2026, 3, 1), 0)


def test_a_log_where_the_next_item_follows_from_the_last_one_has_order(walk, sessions_of):
    bundle = markov(sessions_of(walk(600, follows=0.7, seed=1)))
    found = shuffle_test(bundle, sessions_of(walk(300, follows=0.7, seed=2)), 20)
    assert found.in_order > 0.6
    assert found.shuffled < found.in_order - 0.2
    assert found.difference.value == pytest.approx(found.in_order - found.shuffled)
    assert found.difference.low > 0
    assert found.difference.p_value == 1e-4
    assert found.sentence("markov").startswith("the order of events tells markov something: MRR@20 is 0.")


@pytest.mark.parametrize("seed", range(3))
def test_a_log_of_items_drawn_alike_has_none(seed, walk, sessions_of):
    bundle = markov(sessions_of(walk(600, follows=0.0, seed=seed)))
    found = shuffle_test(bundle, sessions_of(walk(300, follows=0.0, seed=seed + 10)), 20)
    assert abs(found.difference.value) < 0.03
    assert found.difference.p_value > 0.05
    assert found.sentence("markov").startswith("no sign that order tells markov anything")


def test_a_model_that_does_not_look_at_order_cannot_tell(walk, sessions_of, popularity_bundle):
    bundle = popularity_bundle(walk(50, follows=0.9, seed=1))
    found = shuffle_test(bundle, sessions_of(walk(50, follows=0.9, seed=2)), 20)
    assert found.difference == (0, 0, 0, 1)


def test_targets_are_last_known_events_after_two_known_ones(scripted, sessions_of):
    sessions = sessions_of([["a", "?", "b", "c", "?"], ["a", "b"], ["?", "a", "b"], ["a", "b", "c"]])
    found = shuffle_test(scripted(SCORES), sessions, 2)
    assert found.num_targets == 2
    assert found.in_order == 1, "c is the best item after b"
    assert found.shuffled in (1, 0.75, 0.5), "and the second one after a"
    assert set(found.numbers()) == {
        "order/next_mrr_at_2",
        "order/shuffled_next_mrr_at_2",
        "order/p_value",
        "order/num_targets",
    }


def test_without_such_sessions_nothing_is_claimed(scripted, sessions_of):
    found = shuffle_test(scripted(SCORES), sessions_of([["a", "b"], ["?"]]), 20)
    assert (found.num_targets, found.difference) == (0, (0, 0, 0, 1))
    assert "cannot be told" in found.sentence("gru")
