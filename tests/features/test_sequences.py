from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from features.sequences import Sequences, encode_sessions
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


def visits(*sessions: tuple[str, list[int]]) -> Sequences:
    """Sessions of visitors as item codes, in order of start, an event a minute."""
    codes = np.array([code for _, items in sessions for code in items], dtype=np.int64)
    offsets = np.cumsum([0, *(len(items) for _, items in sessions)])
    return Sequences(codes, offsets, np.arange(len(codes)) * 60, pl.Series([visitor for visitor, _ in sessions]))


def units(sequences: Sequences) -> list[list[list[int]]]:
    """The item codes of each session of each user."""
    events = [part.tolist() for part in np.split(sequences.item_codes, sequences.offsets[1:-1])]
    return [events[start:stop] for start, stop in pairwise(sequences.user_offsets)]


VISITS = visits(("u", [1, 2]), ("v", [3]), ("u", [4]), ("w", [5, 0, 6]), ("v", [0]), ("u", [7, 8, 9]))


def test_users_come_in_order_of_their_last_session_each_with_sessions_in_time_order():
    grouped = VISITS.by_user()
    assert units(grouped) == [[[5, 0, 6]], [[3], [0]], [[1, 2], [4], [7, 8, 9]]]
    assert grouped.visitors.to_list() == ["w", "v", "v", "u", "u", "u"]
    assert grouped.occurred_at.tolist() == [240, 300, 360, 120, 420, 0, 60, 180, 480, 540, 600]
    assert grouped.unit_lengths.tolist() == [3, 2, 6]
    assert VISITS.num_units == VISITS.num_sessions == 6


def test_only_the_newest_sessions_of_a_user_are_kept():
    assert units(VISITS.newest(2).by_user()) == [[[5, 0, 6]], [[3], [0]], [[4], [7, 8, 9]]]
    assert VISITS.newest(1).visitors.to_list() == ["w", "v", "u"]
    assert VISITS.newest(9).item_codes.tolist() == VISITS.item_codes.tolist()


def test_users_without_a_target_go_and_short_sessions_of_others_stay():
    assert units(VISITS.by_user().with_targets()) == [[[5, 0, 6]], [[1, 2], [4], [7, 8, 9]]]
    assert units(VISITS.by_user().known_only().at_least(1)) == [[[5, 6]], [[3]], [[1, 2], [4], [7, 8, 9]]]


def test_what_came_before_is_history_and_gives_no_target():
    day = visits(("u", [1, 2, 3]), ("w", [4]))
    known = day.after(visits(("u", [5, 6]), ("v", [7, 8])))
    assert known.num_targets.tolist() == [0, 0, 2, 0]
    grouped = known.by_user().with_targets()
    assert units(grouped) == [[[5, 6], [1, 2, 3]]]
    assert grouped.is_history.tolist() == [True, False]


def test_silences_cut_a_users_events_into_sessions():
    told = visits(("u", [1, 2, 3]), ("v", []), ("w", [4, 5]))
    cut = Sequences(told.item_codes, told.offsets, np.array([0, 60, 121, 0, 61]), told.visitors).cut_at_silences(60)
    assert units(cut) == [[[1, 2], [3]], [], [[4], [5]]]
    assert cut.unit_lengths.tolist() == [3, 0, 2]
    assert cut.visitors.to_list() == ["u", "u", "w", "w"]
    nothing = visits(("u", [])).cut_at_silences(60)
    assert (nothing.num_units, nothing.num_sessions) == (1, 0)
