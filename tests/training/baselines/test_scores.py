"""Each baseline against the same in plain Python, prefix by prefix."""

import math
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from operator import itemgetter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from pipeline.errors import ConfigurationError
from training.baselines import item_knn
from training.batch import gather
from training.recipes import RECIPES, Recipe, StanRecipe, VsKnnRecipe, find_recipe
from training.settings import Training
from training.train import make

NUM_ITEMS = 6
DAY = 86_400_000_000
AS_OF = 10 * DAY
Log = list[list[int]]
Scores = dict[int, float]

logs = st.lists(st.lists(st.integers(1, NUM_ITEMS), min_size=1, max_size=7), min_size=1, max_size=8)


def sequences(log: Log) -> Sequences:
    """Sessions that begin a day apart, an hour between events; the last begins a day before the window's end."""
    times = [AS_OF + (n - len(log)) * DAY + m * DAY // 24 for n, session in enumerate(log) for m in range(len(session))]
    offsets = np.cumsum([0, *map(len, log)])
    codes = np.array([code for session in log for code in session], dtype=np.int64)
    return Sequences(codes, offsets, np.array(times, dtype=np.int64), pl.Series(["v"] * len(log)))


def scored(recipe: Recipe, log: Log, asked: Log) -> list[Scores]:
    """The scores above 0 after each event of the sessions that ask."""
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [[f"i{n}" for n in range(NUM_ITEMS)]]}), 1)
    recommender = make(recipe, vocabulary, sequences(log), AS_OF)[0]
    top = recommender.recommend(gather(sequences(asked), np.arange(len(asked))), NUM_ITEMS, AS_OF)
    rows = zip(top.codes_RN.tolist(), top.scores_RN.tolist(), strict=True)
    return [{code: score for code, score in zip(*row, strict=True) if score > 0} for row in rows]


def popularity(log: Log) -> Scores:
    counts = Counter(code for session in log for code in session)
    return {code: count / (1 + max(counts.values())) for code, count in counts.items()}


def agree(recipe: Recipe, log: Log, asked: Log, slow: Callable[[list[int]], Scores]) -> None:
    prefixes = [session[: n + 1] for session in asked for n in range(len(session))]
    for prefix, found in zip(prefixes, scored(recipe, log, asked), strict=True):
        assert found == pytest.approx({k: v for k, v in slow(prefix).items() if v > 0}, rel=1e-5)


@given(logs, logs)
@settings(max_examples=40, deadline=None)
def test_session_popularity_counts_within_the_session(log, asked):
    share = popularity(log)

    def slow(prefix: list[int]) -> Scores:
        return {code: count + share.get(code, 0) for code, count in Counter(prefix).items()}

    agree(RECIPES["session_popularity"](), log, asked, slow)


@given(logs, logs)
@settings(max_examples=40, deadline=None)
def test_markov_counts_what_came_right_after(log, asked):
    share = popularity(log)

    def slow(prefix: list[int]) -> Scores:
        after = [b for session in log for a, b in pairwise(session) if a == prefix[-1]]
        return {code: count + share[code] for code, count in Counter(after).items()}

    agree(RECIPES["markov"](), log, asked, slow)


@given(logs, logs, st.integers(1, 4), st.sampled_from([None, 2.0]))
@settings(max_examples=40, deadline=None)
def test_sequential_rules_weigh_distance_and_age(log, asked, steps, half_life_days):
    def slow(prefix: list[int]) -> Scores:
        scores: Scores = Counter()
        for number, session in enumerate(log):
            for first, code in enumerate(session):
                for far, later in enumerate(session[first + 1 : first + 1 + steps], 1):
                    age_days = len(log) - number - (first + far) / 24
                    weight = 1.0 if half_life_days is None else 0.5 ** (age_days / half_life_days)
                    scores[later] += weight / far if code == prefix[-1] else 0
        return scores

    half_life = None if half_life_days is None else timedelta(days=half_life_days)
    agree(changed("sequential_rules", steps=steps, half_life=half_life), log, asked, slow)


@given(logs, logs, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 3.0]))
@settings(max_examples=40, deadline=None)
def test_item_knn_is_the_damped_cosine_over_sessions(log, asked, alpha, damping):
    def support(*codes: int) -> int:
        return sum(all(code in session for code in codes) for session in log)

    def slow(prefix: list[int]) -> Scores:
        now = prefix[-1]
        return {
            code: support(now, code)
            / ((support(now) + damping) ** alpha * (support(code) + damping) ** (1 - alpha) or 1)
            for code in range(1, NUM_ITEMS + 1)
            if code != now
        }

    agree(changed("item_knn", alpha=alpha, regularisation=damping), log, asked, slow)


def test_item_knn_keeps_the_nearest_and_those_that_tie_with_them(monkeypatch):
    log = [[1, 2], [1, 2], [1, 3], [1, 4], [1, 5, 6]]
    recipe = changed("item_knn", neighbours=2, regularisation=0.0, alpha=1.0)
    expected = [{2: pytest.approx(2 / 5), 3: pytest.approx(1 / 5), 4: pytest.approx(1 / 5)} | {5: pytest.approx(1 / 5)}]
    expected[0][6] = pytest.approx(1 / 5)
    assert scored(recipe, log, [[1]]) == expected
    assert set(scored(changed("item_knn", neighbours=1), log, [[1]])[0]) == {2}
    monkeypatch.setattr(item_knn, "NUMBERS_AT_ONCE", 4)
    assert scored(recipe, log, [[1]]) == expected, "blocks of items change nothing"


def test_items_without_evidence_follow_in_order_of_popularity():
    log = [[1, 2], [5, 5, 5, 4, 4, 3]]
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [[f"i{n}" for n in range(NUM_ITEMS)]]}), 1)
    recommender = make(RECIPES["markov"](), vocabulary, sequences(log), AS_OF)[0]
    top = recommender.recommend_last(gather(sequences([[1]]), np.array([0])), 5, AS_OF)
    assert top.codes_RN[0, :3].tolist() == [2, 5, 4]
    assert (top.scores_RN[0] > 0).tolist() == [True, False, False, False, False]
    assert top.ties_R.tolist() == [0]


def sampled(log: Log, prefix: list[int], sample: int) -> list[int]:
    """Numbers of the sessions that share an item, the most recent first."""
    sharing = [n for n, session in enumerate(log) if set(session) & set(prefix)]
    return sharing[::-1][:sample]


def nearest(similar: list[tuple[int, float]], neighbours: int) -> list[tuple[int, float]]:
    return sorted(similar, key=itemgetter(1), reverse=True)[:neighbours]


def slow_vs_knn(recipe: VsKnnRecipe, log: Log, prefix: list[int]) -> dict[int, float]:
    weight = {code: place / len(prefix) for place, code in enumerate(prefix, 1)}
    similar = [
        (n, float(np.float32(sum(weight[code] for code in set(log[n]) & set(prefix)))))
        for n in sampled(log, prefix, recipe.sample)
    ]
    scores: dict[int, float] = {}
    for n, similarity in nearest(similar, recipe.neighbours):
        step = next(back for back, code in enumerate(reversed(prefix), 1) if code in log[n])
        for code in set(log[n]):
            count = sum(session.count(code) for session in log)
            rare = 1 + recipe.idf * max(math.log(len(log) / count), 0)
            scores[code] = scores.get(code, 0) + similarity / step * rare
    return scores


def slow_stan(recipe: StanRecipe, log: Log, prefix: list[int]) -> dict[int, float]:
    weight = {code: math.exp((place - len(prefix)) / recipe.event_decay) for place, code in enumerate(prefix, 1)}
    decay_days = recipe.session_decay / timedelta(days=1)

    def similarity(n: int) -> float:
        age_days = len(log) - n - (len(log[n]) - 1) / 24
        shared = sum(weight[code] for code in set(log[n]) & set(prefix))
        return float(np.float32(shared * math.exp(-age_days / decay_days) / math.sqrt(len(set(log[n])))))

    scores: dict[int, float] = {}
    similar = [(n, similarity(n)) for n in sampled(log, prefix, recipe.sample)]
    for n, near in nearest(similar, recipe.neighbours):
        last_shared = max(place for place, code in enumerate(log[n]) if code in prefix)
        for code in set(log[n]):
            place = max(place for place, other in enumerate(log[n]) if other == code)
            scores[code] = scores.get(code, 0) + near * math.exp(-abs(place - last_shared) / recipe.item_decay)
    return scores


SLOW = {"vs_knn": slow_vs_knn, "stan": slow_stan}


@pytest.mark.parametrize("name", SLOW)
@given(log=logs, asked=logs, neighbours=st.integers(1, 4), more=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_the_slow_way(name, log, asked, neighbours, more):
    recipe = changed(name, neighbours=neighbours, sample=neighbours + more)
    agree(recipe, log, asked, lambda prefix: SLOW[name](recipe, log, prefix))


@pytest.mark.parametrize("name", SLOW)
@given(log=logs, asked=logs)
@settings(max_examples=10, deadline=None)
def test_items_of_the_session_may_be_kept_out(name, log, asked):
    with_all, without = (scored(changed(name, remind=remind), log, asked) for remind in (True, False))
    prefixes = [session[: n + 1] for session in asked for n in range(len(session))]
    for prefix, every, other in zip(prefixes, with_all, without, strict=True):
        assert other == {code: score for code, score in every.items() if code not in prefix}


def test_a_decay_may_be_off():
    recipe = changed("stan", event_decay=None, session_decay=None, item_decay=None)
    assert scored(recipe, [[1, 2], [2, 3, 4]], [[2]]) == [
        pytest.approx({1: 2**-0.5, 2: 2**-0.5 + 3**-0.5, 3: 3**-0.5, 4: 3**-0.5})
    ]


@pytest.mark.parametrize(
    ("decay", "steps_back_1", "steps_back_2"),
    [("same", 1, 1), ("linear", 0.9, 0.8), ("div", 1, 0.5), ("quadratic", 1, 0.25)],
)
def test_neighbours_that_share_older_items_count_less(decay, steps_back_1, steps_back_2):
    recipe = changed("vs_knn", event_decay="same", neighbour_decay=decay)
    found = scored(recipe, [[1, 5], [2, 6]], [[1, 2]])[1]
    assert found == pytest.approx({1: steps_back_2, 5: steps_back_2, 2: steps_back_1, 6: steps_back_1})


@pytest.mark.parametrize(("decay", "older"), [("same", 1), ("linear", 0.9), ("div", 0.5), ("quadratic", 0.25)])
def test_older_events_count_less(decay, older):
    recipe = changed("vs_knn", event_decay=decay, neighbour_decay="same")
    assert scored(recipe, [[1, 5], [2, 6]], [[1, 2]])[1] == pytest.approx({1: older, 5: older, 2: 1, 6: 1})


@pytest.mark.parametrize("name", SLOW)
def test_more_neighbours_than_sampled_sessions_are_refused(name):
    with pytest.raises(ConfigurationError, match=f"recipes.{name}: .*neighbours is 9000, but .* sample = 4000"):
        find_recipe(name, Training.model_validate({"recipes": {name: {"neighbours": 9000, "sample": 4000}}}))


def changed(name: str, **fields: object) -> Recipe:
    return RECIPES[name]().model_copy(update=fields)
