"""Windows with almost nothing in them: every recipe either works or says why not."""

import math

import numpy as np
import pytest

from features.sequences import encode_sessions
from features.vocabulary import learn_vocabulary
from pipeline.errors import ContractError
from training.batch import gather
from training.recipes import RECIPES, find_recipe
from training.settings import Training
from training.train import make

AS_OF = 10**16  # after every session

LOSSES = {
    "full": {},
    "bpr_max": {"loss": "bpr_max", "num_negatives": 4},
    "gbce": {"loss": "gbce", "num_negatives": 4},
}


def window(sessions_of, items, known):
    vocabulary = learn_vocabulary(sessions_of(known), 1)
    return vocabulary, encode_sessions(sessions_of(items), vocabulary)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_lists_the_only_item_of_a_window(name, sessions_of):
    only = [["a", "a", "a"], ["a", "a"]]
    vocabulary, sequences = window(sessions_of, only, only)
    recommender, losses = make(find_recipe(name, Training()), vocabulary, sequences, AS_OF)
    top = recommender.eval().recommend_last(gather(sequences, np.arange(2)), 5, AS_OF)
    assert top.codes_RN.tolist() == [[1], [1]]
    assert all(map(math.isfinite, losses.values()))


@pytest.mark.parametrize("fields", LOSSES.values(), ids=LOSSES)
def test_every_loss_bears_a_single_item_and_sessions_of_unknown_ones(fields, sessions_of):
    vocabulary, sequences = window(sessions_of, [["x", "y"], ["a", "x", "a"], ["z"]], [["a", "a"]])
    training = Training(recipes={"gru": {"hidden_size": 4, "epochs": 2, **fields}})
    _, losses = make(find_recipe("gru", training), vocabulary, sequences.known_only(), AS_OF)
    assert math.isfinite(losses["train_loss"])


@pytest.mark.parametrize("name", ["gru", "gru4rec", "hrnn"])
@pytest.mark.parametrize("items", [[["x", "y"]], [["a"], ["b"]]], ids=["unknown-only", "one-event-each"])
def test_a_window_without_two_known_items_in_a_session_is_refused(name, items, sessions_of):
    vocabulary, sequences = window(sessions_of, items, [["a", "b"]])
    with pytest.raises(ContractError, match=r"nothing to train on.*window\.min_item_count"):
        make(find_recipe(name, Training()), vocabulary, sequences.known_only(), AS_OF)
