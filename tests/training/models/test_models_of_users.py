"""What every model promises that can read a user's sessions, those that are one long session to it among them."""

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences, encode_sessions
from features.vocabulary import learn_vocabulary
from training.batch import Batch, gather
from training.bundle import Bundle, build
from training.evaluation import evaluate_next
from training.fit import fit
from training.models import MODELS
from training.models.base import SessionModel
from training.recipes import OF_EITHER, OF_USERS, RECIPES, SequenceRecipe
from training.units import training_units

NUM_CODES = 31

pytestmark = pytest.mark.parametrize("encoder", [name for name in MODELS if name in (*OF_EITHER, *OF_USERS)])


def recipe_of(encoder: str, **fields: object) -> SequenceRecipe:
    recipe = RECIPES[encoder]()
    assert isinstance(recipe, SequenceRecipe)
    small = {"hidden_size": 8, "sequence": "user", "num_negatives": min(recipe.num_negatives, 16)}
    return SequenceRecipe.model_validate(recipe.model_dump() | small | fields)


def make_model(encoder: str) -> SessionModel:
    model = build(recipe_of(encoder), NUM_CODES)
    assert isinstance(model, SessionModel)
    return model.eval()


def make_sequences(num_sessions: int = 40, num_users: int = 9) -> Sequences:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 6, num_sessions))])
    codes, users = random.integers(1, NUM_CODES, offsets[-1]), random.integers(num_users, size=num_sessions)
    return Sequences(codes, offsets, np.arange(offsets[-1]) * 10**6, pl.Series([f"v{user}" for user in users]))


def everyone(users: Sequences) -> Batch:
    return gather(users, np.arange(users.num_units))


def test_a_batch_gives_what_each_user_gives_alone(encoder):
    model, users = make_model(encoder), make_sequences().by_user()
    alone = torch.cat([model.states(gather(users, np.array([n]))) for n in range(users.num_units)])
    torch.testing.assert_close(model.states(everyone(users)), alone, rtol=1e-5, atol=1e-5)
    vectors_UD = model.session_vectors(everyone(users))
    torch.testing.assert_close(vectors_UD, alone[np.cumsum(users.unit_lengths) - 1], rtol=1e-5, atol=1e-5)


def test_a_later_session_changes_no_earlier_one_and_an_earlier_one_counts(encoder):
    model, users = make_model(encoder), make_sequences(num_users=1).by_user()
    place = int(users.offsets[20])
    changed = users.item_codes.copy()
    changed[place] = changed[place] % (NUM_CODES - 1) + 1
    before, after = (model.states(everyone(replace(users, item_codes=c))) for c in (users.item_codes, changed))
    torch.testing.assert_close(before[:place], after[:place])
    next_session = int(users.offsets[21])
    assert not torch.allclose(before[next_session], after[next_session])


def test_sessions_without_events_change_nothing(encoder):
    model = make_model(encoder)
    offsets, user_offsets = np.array([0, 0, 2, 2, 3]), np.array([0, 4])
    holes = Sequences(np.array([1, 2, 3]), offsets, np.arange(3), pl.Series(["u"] * 4), user_offsets=user_offsets)
    torch.testing.assert_close(model.states(everyone(holes)), model.states(everyone(holes.at_least(1))))


def test_it_is_trained_and_ranked_with_histories(encoder, sessions_of, walk, tmp_path):
    sessions = sessions_of(walk(60, follows=0.8, seed=1), [f"v{n % 7}" for n in range(60)])
    vocabulary = learn_vocabulary(sessions, 1)
    recipe = recipe_of(encoder, batch_size=4)
    model = build(recipe, vocabulary.num_codes)
    bundle = Bundle(model, vocabulary, "r", recipe, date(2026, 3, 1), 0)
    fit(model, training_units(recipe, encode_sessions(sessions, vocabulary)), recipe, 1, tmp_path)
    earlier, day = sessions.head(40), sessions.tail(20)
    found = evaluate_next(bundle, day, (20,), earlier).numbers()
    assert 0 < found["all/next_recall_at_20"] <= 1
    assert found["all_by_history/3_or_more/num_targets"] == found["all/num_targets"]
