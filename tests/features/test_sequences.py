from datetime import UTC, datetime

import numpy as np
import pytest

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary


@pytest.fixture
def sequences(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["a"] * 3, ["b"] * 2, ["c"]]), 1)
    return encode_sessions(sessions_of([["a", "?", "b"], ["?"], ["c", "c"]], ["u", "v", "w"]), vocabulary)


def test_sessions_lie_behind_each_other(sequences):
    assert sequences.item_codes.tolist() == [1, 0, 2, 0, 3, 3]
    assert sequences.offsets.tolist() == [0, 3, 4, 6]
    assert sequences.lengths.tolist() == [3, 1, 2]
    assert sequences.session_of_event().tolist() == [0, 0, 0, 1, 2, 2]
    assert sequences.visitors.to_list() == ["u", "v", "w"]


def test_each_event_has_its_own_time(sequences):
    midnight = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    assert (sequences.occurred_at // 1_000_000 - midnight).tolist() == [0, 60, 120, 60, 120, 180]


def test_sessions_are_ordered_by_start_then_id(sessions_of):
    sessions = sessions_of([["a"], ["b"], ["c"]], ["u", "v", "w"])
    vocabulary = learn_vocabulary(sessions, 1)
    assert encode_sessions(sessions.reverse(), vocabulary).visitors.to_list() == ["u", "v", "w"]
    same_time = sessions.with_columns(started_at=sessions["started_at"].first()).reverse()
    assert encode_sessions(same_time, vocabulary).visitors.to_list() == ["u", "v", "w"]


def test_leaving_out_unknown_items_may_empty_a_session_but_keeps_it(sequences):
    known = sequences.known_only()
    assert known.item_codes.tolist() == [1, 2, 3, 3]
    assert known.offsets.tolist() == [0, 2, 2, 4]
    assert known.visitors.to_list() == ["u", "v", "w"]
    assert len(known.occurred_at) == 4


def test_short_sessions_go_with_their_visitors(sequences):
    kept = sequences.known_only().at_least(1)
    assert (kept.item_codes.tolist(), kept.offsets.tolist()) == ([1, 2, 3, 3], [0, 2, 4])
    assert kept.visitors.to_list() == ["u", "w"]
    assert sequences.at_least(3).item_codes.tolist() == [1, 0, 2]


def test_no_sessions_are_sequences_too(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["a"]]), 1)
    none = encode_sessions(sessions_of([]), vocabulary)
    assert none.num_sessions == 0
    assert none.known_only().at_least(2).offsets.tolist() == [0]
    assert none.item_codes.dtype == np.int64
