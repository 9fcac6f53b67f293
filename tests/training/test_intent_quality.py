from datetime import date

import numpy as np
import polars as pl
import pytest

from features.intents import Definitions
from features.vocabulary import learn_vocabulary
from training.bundle import Bundle, build_for
from training.evaluation import evaluate_next
from training.intent_quality import calibration_error, intent_quality, macro_f1, measure_intent
from training.recipes import SequenceRecipe

AS_OF = 1_772_323_200_000_000
DEFINITIONS = Definitions(
    classes={"event_type": ("view", "cart"), "new_or_repeat": ("new", "repeat")},
    columns=("event_type",),
    intents=("event_type", "new_or_repeat"),
)


def test_macro_f1_is_a_mean_over_the_classes_that_occur():
    right = np.array([1, 1, 1, 2])
    labels = right[:, None]
    assert macro_f1(labels, right) == 1
    assert macro_f1(labels, np.array([1, 1, 1, 1])) == pytest.approx((6 / 7 + 0) / 2)
    assert macro_f1(labels, np.array([1, 1, 3, 2])) == pytest.approx((4 / 5 + 1) / 2), "3 never occurs"
    assert macro_f1(labels, np.zeros(4, np.int64)) == 0, "a guess may be missing"


def test_calibration_compares_confidence_and_accuracy_bin_by_bin():
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == pytest.approx(0)
    mixed = calibration_error(np.array([0.55, 0.55, 0.95, 0.95]), np.array([False, False, True, True]))
    assert mixed == pytest.approx((0.55 + 0.05) / 2)


def test_the_model_stands_beside_its_guesses_and_missing_labels_count_nowhere():
    columns = {
        "labels": np.array([[1], [2], [1], [1], [0]]),
        "last": np.array([1, 1, 2, 0, 2]),
        "predicted": np.array([1, 2, 1, 2, 1]),
        "confidence": np.full(5, 0.8),
    }
    found = measure_intent(columns, np.array([1, 2, 0, 4, 1]), 20)
    assert (found["num_targets"], found["label_share"]) == (4, 0.8)
    assert (found["accuracy"], found["same_as_last_accuracy"], found["most_common_accuracy"]) == (0.75, 0.25, 0.75)
    assert found["next_mrr_at_20_right"] == pytest.approx((1 + 1 / 2) / 3)
    assert found["next_mrr_at_20_wrong"] == 1 / 4
    assert found["calibration_error"] == pytest.approx(0.05)
    assert measure_intent(columns | {"labels": np.zeros((5, 1), np.int64)}, np.ones(5, np.int64), 20) == {}


def test_of_several_labels_each_is_right():
    columns = {
        "labels": np.array([[1, 2], [2, 0], [3, 1], [0, 0]]),
        "last": np.array([2, 1, 2, 1]),
        "predicted": np.array([2, 2, 2, 1]),
        "confidence": np.full(4, 0.5),
    }
    found = measure_intent(columns, np.array([1, 2, 0, 1]), 20)
    assert (found["num_targets"], found["label_share"]) == (3, 0.75)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["same_as_last_accuracy"] == pytest.approx(1 / 3)
    assert found["most_common_accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((0 + 2 * 2 / (2 + 3) + 0) / 3)


@pytest.fixture
def sessions(sessions_of):
    items = [["a", "b", "a"], ["b", "c"], ["c"], ["a", "?", "b", "b"]]
    types = [["view", "cart", None], ["view", "swim"], ["view"], ["cart", "view", "view", "cart"]]
    return sessions_of(items, ["u", "v", "u", "w"]).with_columns(event_types=pl.Series(types))


@pytest.mark.parametrize("sequence", ["session", "user"])
def test_targets_are_those_of_warm_and_their_ranks_add_up(sequence, sessions, sessions_of):
    catalogue = pl.DataFrame(
        schema={"item_id": pl.String, "category": pl.String, "price": pl.Float64, "first_seen": pl.Date}
    )
    known = learn_vocabulary(sessions_of([["a", "b", "c"]]), 1).describe(DEFINITIONS, catalogue)
    recipe = SequenceRecipe(encoder="intentrec", hidden_size=8, sequence=sequence)
    bundle = Bundle(build_for(recipe, known).eval(), known, "intentrec", recipe, date(2026, 3, 1), AS_OF)
    found = intent_quality(bundle, sessions, sessions.clear(), 2)
    means = evaluate_next(bundle, sessions, (2,)).means()
    assert found["intent/new_or_repeat/num_targets"] == means["warm/num_targets"] == 5
    assert found["intent/event_type/num_targets"] == 3, "one type is not told, one is no class"
    accuracy = found["intent/new_or_repeat/accuracy"]
    right, wrong = (found.get(f"intent/new_or_repeat/next_mrr_at_2_{name}", 0.0) for name in ("right", "wrong"))
    assert accuracy * right + (1 - accuracy) * wrong == pytest.approx(means["warm/next_mrr_at_2"])


def test_other_models_have_no_intents(sessions, popularity_bundle):
    assert intent_quality(popularity_bundle([["a", "b"]]), sessions, sessions.clear(), 20) == {}
