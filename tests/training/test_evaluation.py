import math
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from training.batch import gather
from training.bundle import Bundle, build
from training.evaluation import (
    MISS,
    evaluate_lists,
    evaluate_next,
    rank_targets,
)
from training.measure import measure_bundle, read_held_out_day
from training.models.base import SessionModel, TopItems
from training.recipes import RECIPES

NO_SEEN = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})


def rank(codes: list[int], scores: list[float], target: int, ties: int = 0) -> int:
    top = TopItems(torch.tensor([codes]), torch.tensor([scores]), torch.tensor([ties]))
    return int(rank_targets(top, np.array([target]))[0])


def test_the_rank_is_the_place_in_the_list():
    assert rank([4, 2, 3], [0.9, 0.5, 0.1], target=2) == 2
    assert rank([4, 2, 3], [0.9, 0.5, 0.1], target=5) == MISS


def test_ties_count_against_us():
    assert rank([4, 2, 3], [0.9, 0.9, 0.1], target=4) == 2
    assert rank([4, 2, 3, 5], [0.9, 0.5, 0.5, 0.1], target=2) == 3


def test_ties_beyond_the_cut_count_too():
    assert rank([4, 2, 3], [0.9, 0.8, 0.5], target=3, ties=0) == 3
    assert rank([4, 2, 3], [0.9, 0.8, 0.5], target=3, ties=1) == MISS
    assert rank([4, 2, 3], [0.9, 0.8, 0.5], target=2, ties=1) == 2, "only who ties with the last is concerned"


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        rank([4, 2, 3], [float("nan"), 0.5, 0.1], target=2)


# a follows nothing; after a comes b, then c; after b comes c, then a; after c all tie
SCORES = [
    [0, 0, 0, 0],
    [0, 1, 3, 2],
    [0, 2, 1, 3],
    [0, 5, 5, 5],
]


def test_both_protocols_on_rows_one_can_check_by_eye(scripted, sessions_of):
    sessions = sessions_of(
        [
            ["a", "b", "c"],  # rank 1, rank 1
            ["a", "?", "c"],  # unknown item: a miss; then c after a: rank 2
            ["?", "b", "a"],  # nothing known before b: a miss; a after b: rank 2
            ["c", "b"],  # everything ties: rank 3
            ["a"],  # no target
            ["?", "?"],  # a miss
        ],
        ["u", "u", "v", "w", "x", "y"],
    )
    outcomes = evaluate_next(scripted(SCORES), sessions, (1, 2, 3))
    means = outcomes.means()
    assert means["all/num_targets"] == 8
    assert means["warm/num_targets"] == 5
    assert means["all/cold_share"] == 2 / 8
    assert means["all/next_recall_at_1"] == 2 / 8
    assert means["all/next_recall_at_2"] == 4 / 8
    assert means["all/next_recall_at_3"] == 5 / 8
    assert means["all/next_mrr_at_2"] == pytest.approx((1 + 1 + 1 / 2 + 1 / 2) / 8)
    assert means["all/next_ndcg_at_3"] == pytest.approx((2 + 2 / math.log2(3) + 1 / 2) / 8)
    assert means["warm/next_recall_at_1"] == 2 / 5
    assert means["warm/next_mrr_at_3"] == pytest.approx((1 + 1 + 1 / 2 + 1 / 2 + 1 / 3) / 5)
    assert set(outcomes.rows["visitor"]) == {"u", "v", "w", "y"}


def plain_metrics(sessions: list[list[str]], scores: list[list[float]], k: int, protocol: str) -> list[float]:
    """Recall, MRR and NDCG without any trick."""
    known = [chr(ord("a") + n) for n in range(len(scores) - 1)]
    found = []
    for session in sessions:
        if protocol == "warm":
            session = [item for item in session if item in known]
        for place in range(1, len(session)):
            before = [item for item in session[:place] if item in known]
            if session[place] not in known or not before:
                found.append((0.0, 0.0, 0.0))
                continue
            row = scores[known.index(before[-1]) + 1]
            target = row[known.index(session[place]) + 1]
            position = sum(score >= target for score in row[1:])
            hit = position <= k
            found.append((float(hit), hit / position, hit / math.log2(position + 1)))
    return np.array(found).mean(axis=0).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_a_slow_reference_on_random_sessions_with_many_ties(seed, scripted, sessions_of):
    random = np.random.default_rng(seed)
    num_items = int(random.integers(3, 12))
    scores = random.integers(0, 4, (num_items + 1, num_items + 1)).tolist()
    alphabet = [chr(ord("a") + n) for n in range(num_items + 2)]  # two of them unknown
    sessions = [random.choice(alphabet, random.integers(1, 8)).tolist() for _ in range(60)]
    visitors = [f"v{random.integers(20)}" for _ in sessions]
    means = evaluate_next(scripted(scores), sessions_of(sessions, visitors), (1, 3, 5)).means()
    for protocol in ("all", "warm"):
        for k in (1, 3, 5):
            ours = [means[f"{protocol}/next_{name}_at_{k}"] for name in ("recall", "mrr", "ndcg")]
            assert ours == pytest.approx(plain_metrics(sessions, scores, k, protocol)), (protocol, k)


@pytest.mark.parametrize("seed", range(3))
def test_reading_users_with_their_history_ranks_the_same_targets(seed, scripted, sessions_of):
    """A model that looks at the last item alone must not notice how its input is grouped."""
    random = np.random.default_rng(seed)
    alphabet = ["a", "b", "c", "?"]
    sessions, earlier = ([random.choice(alphabet, n).tolist() for n in random.integers(1, 6, 50)] for _ in range(2))
    visitors = [f"v{n}" for n in random.integers(12, size=50)]
    day, before = sessions_of(sessions, visitors), sessions_of(earlier, visitors, date(2026, 2, 20))
    bundle = scripted(random.permutation(16).reshape(4, 4).tolist())
    plain = evaluate_next(bundle, day, (1, 2), before)
    for limit in (1, 3, 50):
        recipe = RECIPES["hrnn"]().model_copy(update={"max_sessions": limit})
        grouped = evaluate_next(replace(bundle, recipe=recipe), day, (1, 2), before)
        assert grouped.rows.equals(plain.rows)
        assert grouped.whole == plain.whole


def test_a_model_of_users_sees_what_they_did_before_and_earlier_on_the_day(sessions_of):
    """Every target is ranked as if the user's sessions so far were all that there is."""
    earlier = sessions_of([["a", "b"], ["c"], ["?", "d"]], ["u", "u", "v"], date(2026, 2, 20))
    day = sessions_of([["b", "c", "a"], ["d"], ["a", "d"], ["c", "b"]], ["u", "v", "u", "w"])
    vocabulary = learn_vocabulary(sessions_of([["a", "b", "c", "d"]]), 1)
    recipe = RECIPES["hrnn"]().model_copy(update={"hidden_size": 6})
    model = build(recipe, vocabulary.num_codes).eval()
    assert isinstance(model, SessionModel)
    bundle = Bundle(model, vocabulary, "hrnn", recipe, date(2026, 2, 28), 0)
    found = evaluate_next(bundle, day, (4,), earlier).rows.filter(protocol="all").sort("visitor")
    whole = {"u": [["a", "b"], ["c"], ["b", "c", "a"], ["a", "d"]], "w": [["c", "b"]]}
    targets = {"u": [(2, 1), (2, 2), (3, 1)], "w": [(0, 1)]}
    expected = []
    for user, places in targets.items():
        total = 0.0
        for number, place in places:
            told = [*whole[user][:number], whole[user][number][:place]]
            sequences = encode_sessions(sessions_of(told, [user] * len(told)), vocabulary).by_user()
            top = model.recommend_last(gather(sequences, np.arange(1)), 4, 0)
            code = vocabulary.item_ids().to_list().index(whole[user][number][place])
            total += 1 / (top.codes_RN[0].tolist().index(code) + 1)
        expected.append((user, pytest.approx(total)))
    assert found.select("visitor", "next_mrr_at_4").rows() == expected


def test_a_day_without_targets_has_no_metrics(scripted, sessions_of):
    for sessions in ([], [["a"], ["b"]]):
        outcomes = evaluate_next(scripted(SCORES), sessions_of(sessions), (1,))
        assert outcomes.means() == {}
        assert outcomes.intervals() == {}


def test_lists_are_held_against_all_that_a_user_did(scripted):
    now = pl.datetime(2026, 3, 1, time_zone="UTC", time_unit="us")
    histories = pl.DataFrame({"user_id": ["u", "v", "w"], "item_ids": [["b", "a"], ["?"], ["a"]]}).with_columns(
        last_at=now
    )
    truths = pl.DataFrame(
        {
            "user_id": ["u", "u", "u", "v", "new"],
            "item_id": ["b", "c", "?", "a", "a"],
        }
    )
    outcomes = evaluate_lists(scripted(SCORES), histories, NO_SEEN, truths, (1, 2))
    # u's list: b, c, a. v has no known item: zero. w did nothing on the day, new had no history: neither counts
    assert sorted(outcomes.rows["visitor"]) == ["u", "v"]
    means = outcomes.means()
    assert means["list/num_targets"] == 2
    assert means["list/any_recall_at_1"] == pytest.approx((1 / 3 + 0) / 2)
    assert means["list/any_recall_at_2"] == pytest.approx((2 / 3 + 0) / 2)
    assert outcomes.whole == {
        "list/num_items_at_2": 2,
        "list/gini_at_2": pytest.approx(1 / 3),
        "list/fallback_share_at_2": 1 / 2,
    }
    seen = pl.DataFrame({"user_id": ["u", "w"], "item_id": ["b", "c"]})
    without_b = evaluate_lists(scripted(SCORES), histories, seen, truths, (1,)).means()
    assert without_b["list/any_recall_at_1"] == pytest.approx((1 / 3 + 0) / 2), "c moves up to the place of b"


def test_a_model_that_has_seen_the_day_is_not_tested_on_it(scripted, loaded_shop):
    bundle = scripted(SCORES)
    held_out = read_held_out_day(loaded_shop.site, loaded_shop.store, bundle.data_through + timedelta(days=1))
    with pytest.raises(ValueError, match="seen 2026-03-01 cannot be tested on 2026-03-01"):
        measure_bundle(bundle, held_out._replace(day=bundle.data_through), (20,))
    means = measure_bundle(bundle, held_out, (20,)).means()
    assert means["all/cold_share"] == 1, "this bundle knows no item of the shop"
    assert means["all/next_recall_at_20"] == means["list/any_recall_at_20"] == 0
