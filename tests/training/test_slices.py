from datetime import date

import numpy as np
import polars as pl
import pytest

from features.sequences import encode_sessions
from features.vocabulary import Vocabulary, learn_vocabulary
from training.evaluation import evaluate_next
from training.slices import popularity_band, slice_events

DAYS_BEFORE = date(2026, 2, 20)
BAND = {0: "cold", 1: "head", 2: "middle", 3: "tail"}


def vocabulary_of(counts: dict[str, int]) -> Vocabulary:
    """Items in the given order, which need not be that of their counts: an extended vocabulary."""
    rows = {"item_code": range(1, len(counts) + 1), "item_id": list(counts), "num_events": list(counts.values())}
    return Vocabulary(pl.DataFrame(rows))


def slices_of(sessions: pl.DataFrame, vocabulary: Vocabulary) -> pl.DataFrame:
    named = encode_sessions(sessions, learn_vocabulary(sessions, 1))
    return slice_events(encode_sessions(sessions, vocabulary), named, vocabulary, np.arange(sessions.height))


def test_each_target_is_in_one_slice_of_each_kind(sessions_of):
    sessions = sessions_of([["a", "?", "a", "?", "b", "c"], ["c", "c"]])
    found = slices_of(sessions, vocabulary_of({"a": 60, "b": 35, "c": 5}))
    assert found["all_by_length"].to_list() == ["5_to_9"] * 6 + ["2"] * 2
    assert found["all_by_position"].to_list() == ["first", "1", "2", "3_to_4", "3_to_4", "5_up", "first", "1"]
    repeats = ["explore", "explore", "repeat", "repeat", "explore", "explore", "explore", "repeat"]
    assert found["all_by_repeat"].to_list() == repeats, "an unknown item can come again, too"
    popularity = ["head", "cold", "head", "cold", "middle", "tail", "tail", "tail"]
    assert found["all_by_popularity"].to_list() == popularity


@pytest.mark.parametrize(
    ("length", "name"), [(2, "2"), (3, "3_to_4"), (4, "3_to_4"), (9, "5_to_9"), (10, "10_up"), (31, "10_up")]
)
def test_bands_of_length(length, name, sessions_of):
    assert set(slices_of(sessions_of([["a"] * length]), vocabulary_of({"a": 1}))["all_by_length"]) == {name}


def plain_bands(counts: dict[str, int]) -> list[str]:
    total, so_far, found = sum(counts.values()), 0, {}
    for item in sorted(counts, key=lambda item: -counts[item]):
        found[item] = "head" if so_far < 0.5 * total else "middle" if so_far < 0.9 * total else "tail"
        so_far += counts[item]
    return [found[item] for item in counts]


@pytest.mark.parametrize("seed", range(4))
def test_popularity_bands_equal_a_plain_walk_through_the_items(seed):
    random = np.random.default_rng(seed)
    counts = {f"i{n}": int(1 + random.pareto(1) * 3) for n in range(50)}
    bands = [BAND[band] for band in popularity_band(vocabulary_of(counts)).tolist()]
    assert bands == ["cold", *plain_bands(counts)]


def test_a_vocabulary_without_items_or_events_has_bands():
    assert popularity_band(vocabulary_of({})).tolist() == [0]
    assert popularity_band(vocabulary_of({"a": 0})).shape == (2,)


def plain_slices(session: list[str], place: int, popularity: dict[str, str], num_earlier: int) -> set[str]:
    """The slices of one target, by hand."""
    length = (
        ["2", "3_to_4", "3_to_4"][len(session) - 2] if len(session) < 5 else "5_to_9" if len(session) < 10 else "10_up"
    )
    position = "1" if place == 1 else "2" if place == 2 else "3_to_4" if place < 5 else "5_up"
    repeat = "repeat" if session[place] in session[:place] else "explore"
    return {
        f"all_by_length/{length}",
        f"all_by_position/{position}",
        f"all_by_repeat/{repeat}",
        f"all_by_popularity/{popularity.get(session[place], 'cold')}",
        f"all_by_history/{num_earlier if num_earlier < 3 else '3_or_more'}",
    }


@pytest.mark.parametrize("seed", range(3))
def test_means_of_slices_equal_a_slow_reference(seed, scripted, sessions_of):
    random = np.random.default_rng(seed)
    scores = random.permutation(81).reshape(9, 9).tolist()  # no ties: those are tested elsewhere
    known = [chr(ord("a") + n) for n in range(8)]
    sessions = [random.choice([*known, "?", "!"], random.integers(1, 13)).tolist() for _ in range(40)]
    bundle = scripted(scores)
    earlier = sessions_of([["a"], ["?"], ["b", "c"]], ["v1", "v2", "v1"], DAYS_BEFORE)
    rows = sessions_of(sessions, [f"v{n % 15}" for n in range(40)])
    means = evaluate_next(bundle, rows, (1, 3), earlier).means()
    popularity = dict(zip(known, plain_bands(dict.fromkeys(known, 1)), strict=True))
    found: dict[str, list[tuple[int, float]]] = {}
    for number, session in enumerate(sessions):
        num_earlier = number // 15 + {1: 2, 2: 1}.get(number % 15, 0)
        for place in range(1, len(session)):
            before = [item for item in session[:place] if item in known]
            rank = 0
            if before and session[place] in known:
                row = scores[known.index(before[-1]) + 1][1:]
                rank = 1 + sum(score > row[known.index(session[place])] for score in row)
            hit = 0 < rank <= 3
            for name in plain_slices(session, place, popularity, num_earlier):
                found.setdefault(name, []).append((int(hit), 1 / rank if hit else 0.0))
    told = {name for name in means if name.startswith("all_by_")}
    assert told == {f"{name}/{m}" for name in found for m in ("next_recall_at_3", "next_mrr_at_3", "num_targets")}
    for name, targets in found.items():
        recall, mrr = np.mean(targets, axis=0)
        assert means[f"{name}/num_targets"] == len(targets)
        assert means[f"{name}/next_recall_at_3"] == pytest.approx(recall), name
        assert means[f"{name}/next_mrr_at_3"] == pytest.approx(mrr), name
    assert means["all_by_popularity/cold/next_recall_at_3"] == 0
