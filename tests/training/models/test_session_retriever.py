"""The session retriever beside its equations, and the one score that it has everywhere."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences, encode_sessions
from features.vocabulary import learn_vocabulary
from serving_export.item_index import exact_index
from training.batch import Batch, gather
from training.bundle import build
from training.fit import fit
from training.models.session_retriever import FIRST_TEMPERATURE, LOWEST_TEMPERATURE, SessionRetriever
from training.recipes import RECIPES, SequenceRecipe
from training.units import training_units

NUM_CODES, HIDDEN = 31, 8
POOLINGS = pytest.mark.parametrize("pooling", ["mean", "gru"])
SEQUENCES = pytest.mark.parametrize("sequence", ["session", "user"])


def recipe_of(**fields: object) -> SequenceRecipe:
    return SequenceRecipe.model_validate(RECIPES["session_retriever"]().model_dump() | {"hidden_size": HIDDEN} | fields)


def make_model(**fields: object) -> SessionRetriever:
    model = build(recipe_of(**fields), NUM_CODES)
    assert isinstance(model, SessionRetriever)
    return model.eval()


def make_sequences(num_sessions: int = 30, num_users: int = 7) -> Sequences:
    """Sessions of one to five events, of a few users; one of them is empty."""
    random = np.random.default_rng(2)
    lengths = random.integers(1, 6, num_sessions)
    lengths[5] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    visitors = pl.Series([f"v{user}" for user in random.integers(num_users, size=num_sessions)])
    return Sequences(random.integers(1, NUM_CODES, offsets[-1]), offsets, np.arange(offsets[-1]), visitors)


def everyone(sequences: Sequences) -> Batch:
    return gather(sequences, np.arange(sequences.num_units))


def pooled(model: SessionRetriever, items: list[int]) -> list[torch.Tensor]:
    """A session up to each of its items."""
    rows = [model.items.weight[item] for item in items]
    if model.layer is None:
        return [torch.stack(rows[: n + 1]).mean(0) for n in range(len(rows))]
    cell = torch.nn.GRUCell(HIDDEN, HIDDEN)
    cell.load_state_dict({name.removesuffix("_l0"): weights for name, weights in model.layer.state_dict().items()})
    found = [torch.zeros(HIDDEN)]
    for row in rows:
        found.append(cell(row, found[-1]))
    return found[1:]


def by_the_equations(model: SessionRetriever, sessions: list[list[int]]) -> list[torch.Tensor]:
    """The states of one user's events."""
    earlier, states = [], []
    for items in sessions:
        of_events = pooled(model, items)
        user = torch.stack(earlier).mean(0) if earlier else torch.zeros(HIDDEN)
        for p in of_events:
            vector = model.of_session(torch.cat([p, user]) if model.has_users else p)
            states.append(vector / vector.norm() * model.log_scale.exp())
        earlier += of_events[-1:]
    return states


@POOLINGS
@SEQUENCES
def test_states_are_those_of_the_equations(pooling, sequence):
    model = make_model(pooling=pooling, sequence=sequence)
    sequences = make_sequences()
    grouped = sequences.by_user() if sequence == "user" else sequences
    user_offsets = np.arange(31) if grouped.user_offsets is None else grouped.user_offsets
    slow = []
    for first, last in pairwise(user_offsets):
        sessions = [grouped.item_codes[grouped.events_of(np.array([n]))].tolist() for n in range(first, last)]
        slow += by_the_equations(model, sessions)
    torch.testing.assert_close(model.states(everyone(grouped)), torch.stack(slow), rtol=1e-4, atol=1e-5)


@POOLINGS
@SEQUENCES
def test_the_score_is_a_cosine_over_the_temperature_everywhere(pooling, sequence):
    """In training and evaluation (states and item vectors), in lists, and in the index."""
    model = make_model(pooling=pooling, sequence=sequence)
    with torch.no_grad():
        model.log_scale += 0.3
    sequences = make_sequences().at_least(1)
    batch = everyone(sequences.by_user() if sequence == "user" else sequences)
    states_TD, vectors_ID = model.states(batch).detach(), model.item_vectors(0).detach()
    cosines_TI = torch.nn.functional.cosine_similarity(states_TD[:, None], vectors_ID[None], dim=2)
    temperature = FIRST_TEMPERATURE / math.exp(0.3)
    assert cosines_TI.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(states_TD @ vectors_ID.T, cosines_TI / temperature, rtol=1e-4, atol=1e-4)
    codes_C = torch.tensor([4, 9, 4])
    torch.testing.assert_close(model.item_vectors(0, codes_C), vectors_ID[codes_C])
    listed = model.recommend_last(batch, 5, 0)
    last = batch.last_events
    codes_SN, scores_SN = exact_index(vectors_ID.numpy(), np.arange(1, NUM_CODES)).search(states_TD[last].numpy(), 5)
    assert (codes_SN == listed.codes_RN.numpy()).all()
    expected = (cosines_TI / temperature)[last].gather(1, listed.codes_RN)
    np.testing.assert_allclose(scores_SN, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_who_has_no_history_gets_what_an_unknown_user_gets():
    model = make_model(sequence="user")
    alone = make_sequences(12, num_users=10**6).at_least(1)
    ungrouped, grouped = model.states(everyone(alone)), model.states(everyone(alone.by_user()))
    torch.testing.assert_close(grouped, ungrouped)


@POOLINGS
def test_the_temperature_is_learnt_and_bounded(pooling, walk, sessions_of, tmp_path):
    sessions = sessions_of(walk(200, follows=1.0, seed=1))
    vocabulary = learn_vocabulary(sessions, 1)
    recipe = recipe_of(pooling=pooling, hidden_size=24, dropout=0.0, batch_size=32, learning_rate=1e-2)
    model = build(recipe, vocabulary.num_codes)
    assert isinstance(model, SessionRetriever)
    losses = fit(model, encode_sessions(sessions, vocabulary), recipe, 4, tmp_path)
    assert losses["train_loss"] < math.log(vocabulary.num_codes - 1)
    assert model.log_scale.item() != pytest.approx(-math.log(FIRST_TEMPERATURE), abs=1e-3)
    with torch.no_grad():
        model.log_scale.fill_(99.0)
    states_TD = model.states(everyone(encode_sessions(sessions, vocabulary)))
    torch.testing.assert_close(states_TD.norm(dim=1), torch.full((len(states_TD),), 1 / LOWEST_TEMPERATURE))


def test_taste_that_lasts_from_session_to_session_is_learnt(tmp_path):
    """Every user likes one of five groups of six items; the first item of a session tells nothing of it."""
    random = np.random.default_rng(5)
    groups, sessions = random.integers(5, size=60), np.tile(np.arange(60), 5)
    liked = 1 + 6 * groups[sessions][:, None] + random.integers(6, size=(300, 3))
    codes = np.concatenate([random.integers(1, NUM_CODES, (300, 1)), liked], axis=1).ravel()
    visitors = pl.Series([f"v{user}" for user in sessions])
    sequences = Sequences(codes, np.arange(0, 1201, 4), np.arange(1200) * 10**9, visitors)
    recipe = recipe_of(sequence="user", hidden_size=16, dropout=0.0, batch_size=15, learning_rate=0.02)
    users = training_units(recipe, sequences)
    model = build(recipe, NUM_CODES)
    fit(model, users, recipe, 12, tmp_path)
    asked = torch.zeros(1200, dtype=torch.bool)
    asked[16::20] = True  # the first event of each user's fifth session
    batch = replace(everyone(users), target_mask=asked)
    best = model.recommend_targets(batch, 1, 0).codes_RN[:, 0]
    share = ((best - 1) // 6 == (batch.targets() - 1) // 6).float().mean()
    assert share > 0.6, "a session alone tells one in five"
