"""HRNN beside its equations, and what it promises of a user's sessions."""

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from training.batch import Batch, gather
from training.bundle import Bundle, build, load_bundle, save_bundle
from training.fit import EpochBatches, fit
from training.models.hrnn import Hrnn
from training.recipes import RECIPES, SequenceRecipe
from training.units import training_units

NUM_CODES, HIDDEN = 31, 8
WAYS = pytest.mark.parametrize("propagate", ["init", "all"])
OUTPUTS = pytest.mark.parametrize("user_to_output", [False, True])


def recipe_of(**fields: object) -> SequenceRecipe:
    recipe = RECIPES["hrnn"]()
    assert isinstance(recipe, SequenceRecipe)
    return recipe.model_copy(update={"hidden_size": HIDDEN} | fields)


def make_model(**fields: object) -> Hrnn:
    model: Any = build(recipe_of(**fields), NUM_CODES)
    if model.wanted is not None:
        torch.nn.init.normal_(model.wanted.weight)  # it begins as 0, and would hide what it does
    return model.eval()


def sessions_of_users(num_sessions: int = 40, seed: int = 0, num_users: int = 9) -> Sequences:
    """Sessions of one to five events, of a few users."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(random.integers(1, 6, num_sessions))])
    codes, users = random.integers(1, NUM_CODES, offsets[-1]), random.integers(num_users, size=num_sessions)
    return Sequences(codes, offsets, np.arange(offsets[-1]) * 10, pl.Series([f"v{user}" for user in users]))


@pytest.fixture
def users() -> Sequences:
    return training_units(recipe_of(), sessions_of_users())


def everyone(users: Sequences) -> Batch:
    return gather(users, np.arange(users.num_units))


def by_the_equations(model: Hrnn, sessions: list[list[int]]) -> list[torch.Tensor]:
    """The states of one user's events, one after the other."""
    with_user, states = model.propagate == "all", []
    cell = torch.nn.GRUCell(HIDDEN * (2 if with_user else 1), HIDDEN)
    cell.load_state_dict({name.removesuffix("_l0"): weights for name, weights in model.layer.state_dict().items()})
    s, c = torch.zeros(HIDDEN), torch.zeros(HIDDEN)
    for number, items in enumerate(sessions):
        if number:
            c = model.user_layer(s, c)
            s = torch.tanh(model.start.weight @ c + model.start.bias)
        for item in items:
            x = model.items.weight[item]
            s = cell(torch.cat([x, c]) if with_user else x, s)
            states.append(s if model.wanted is None else s + model.wanted.weight @ c)
    return states


def sessions_in(users: Sequences, user: int) -> list[list[int]]:
    sessions = range(users.user_offsets[user], users.user_offsets[user + 1])
    return [users.item_codes[users.offsets[n] : users.offsets[n + 1]].tolist() for n in sessions]


@OUTPUTS
@WAYS
def test_states_are_those_of_the_papers_equations(propagate, user_to_output, users):
    model = make_model(propagate=propagate, user_to_output=user_to_output)
    slow = [state for user in range(users.num_units) for state in by_the_equations(model, sessions_in(users, user))]
    states_TD = model.states(everyone(users))
    assert np.diff(users.user_offsets).max() > 5, "users with many sessions"
    torch.testing.assert_close(states_TD[:, :-1], torch.stack(slow), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.session_vectors(everyone(users)), states_TD[np.cumsum(users.unit_lengths) - 1])


@WAYS
def test_without_history_it_is_the_gru_with_the_same_weights(propagate):
    model, gru = make_model(propagate=propagate), build(RECIPES["gru"]().model_copy(update={"hidden_size": HIDDEN}), 31)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in gru.state_dict()}
    weights["layer.weight_ih_l0"] = weights["layer.weight_ih_l0"][:, :HIDDEN]
    gru.load_state_dict(weights)
    alone = sessions_of_users(12, num_users=10**6)
    batch = gather(alone, np.arange(12))
    expected = gru.eval().states(batch)
    torch.testing.assert_close(model.states(batch), expected)
    grouped = gather(alone.by_user(), np.arange(12))
    assert grouped.user_offsets is not None
    torch.testing.assert_close(model.states(grouped), expected)
    if propagate == "init":
        assert torch.equal(model.states(grouped), expected), "not nearly: exactly"


def states_with(users: Sequences, model: Hrnn, of_user: Callable[..., torch.Tensor] | None = None) -> torch.Tensor:
    if of_user is not None:
        model.user_layer.forward = of_user  # type: ignore[method-assign]
    return model.states(everyone(users))


@WAYS
def test_earlier_sessions_reach_a_session_through_the_users_state_alone(propagate):
    told = Sequences(np.array([1, 2, 3, 4, 5, 6]), np.array([0, 2, 4, 6]), np.arange(6), pl.Series(["u"] * 3))
    changed = Sequences(np.array([1, 2, 9, 8, 5, 6]), told.offsets, told.occurred_at, told.visitors)
    model = make_model(propagate=propagate)
    before, after = (states_with(sequences.by_user(), model) for sequences in (told, changed))
    assert torch.equal(before[:2], after[:2])
    assert not torch.allclose(before[4:], after[4:]), "the session before counts"
    fixed = torch.linspace(-1, 1, HIDDEN)[None]
    before, after = (
        states_with(sequences.by_user(), model, lambda last, user: fixed.expand(len(last), -1))
        for sequences in (told, changed)
    )
    assert not torch.allclose(before[2:4], after[2:4])
    assert torch.equal(before[4:], after[4:]), "with the same c nothing of the session before is left"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_every_target_of_every_user_is_trained_once_an_epoch(batch_size):
    sequences = sessions_of_users(60)
    users = training_units(recipe_of(), sequences)
    for epoch in range(2):
        batches = list(EpochBatches(users, recipe_of(batch_size=batch_size), epoch, 0, 1))
        assert sum(int(batch.target_mask.sum()) for batch in batches) == int(sequences.num_targets.sum())
        assert all(batch.target_mask.any() for batch in batches), "a step without a target has no loss"


def test_sessions_beyond_the_limit_are_left_out_and_counted(caplog):
    sequences = sessions_of_users(60)
    caplog.set_level("INFO", logger="nightjar")
    users = training_units(recipe_of(max_sessions=3), sequences)
    assert np.diff(users.user_offsets).max() == 3
    assert users.visitors.to_list()[-1] == sequences.visitors.to_list()[-1]
    assert f"{60 - users.num_sessions} of 60 sessions are left out" in caplog.text


@WAYS
@pytest.mark.parametrize(
    ("backprop_sessions", "reached"),
    [(1, [{1}, {2}, {3}, {4}]), (2, [{1}, {1, 2}, {3}, {3, 4}]), (9, [{1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4}])],
)
def test_how_far_a_gradient_reaches(propagate, backprop_sessions, reached):
    model = make_model(propagate=propagate, backprop_sessions=backprop_sessions)
    told = Sequences(np.array([1, 1, 2, 2, 3, 3, 4, 4]), np.arange(0, 9, 2), np.arange(8), pl.Series(["u"] * 4))
    for number in range(4):
        model.zero_grad()
        states_TD = model.states(everyone(told.by_user()))
        states_TD[2 * number + 1].sum().backward()
        touched = model.items.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
        assert set(touched) == reached[number]
        if number:
            assert model.start.weight.grad.abs().sum() > 0
            assert model.user_layer.weight_ih.grad.abs().sum() > 0


@WAYS
def test_sessions_without_events_change_nothing(propagate):
    model = make_model(propagate=propagate)
    holes = Sequences(
        np.array([1, 2, 3]),
        np.array([0, 0, 2, 2, 3]),
        np.arange(3),
        pl.Series(["u"] * 4),
        user_offsets=np.array([0, 4]),
    )
    torch.testing.assert_close(model.states(everyone(holes)), model.states(everyone(holes.at_least(1))))
    assert model.states(gather(holes, np.arange(0))).shape == (0, HIDDEN + 1)


def test_taste_that_lasts_from_session_to_session_is_learnt(tmp_path):
    """Every user likes one of five groups of six items; a session's first item tells nothing of it."""
    random = np.random.default_rng(5)
    groups = random.integers(5, size=60)
    sessions = np.tile(np.arange(60), 5)
    liked = 1 + 6 * groups[sessions][:, None] + random.integers(6, size=(300, 3))
    codes = np.concatenate([random.integers(1, NUM_CODES, (300, 1)), liked], axis=1).ravel()
    sequences = Sequences(
        codes, np.arange(0, 1201, 4), np.arange(1200) * 10**9, pl.Series([f"v{user}" for user in sessions])
    )
    fields = {"dropout": 0.0, "user_dropout": 0.0, "batch_size": 15, "prior_half_life": timedelta(hours=1)}
    against_all = {"num_negatives": 0, "negative_alpha": 0, "in_batch_negatives": False}
    recipe = recipe_of(optimiser="adam", learning_rate=0.02, **against_all, **fields)
    model: Any = build(recipe, NUM_CODES)
    users = training_units(recipe, sequences)
    fit(model, users, recipe, 12, tmp_path / "fit")
    last = gather(users, np.arange(users.num_units))
    is_second = torch.zeros(1200, dtype=torch.bool)
    is_second[::4] = True  # asked after a first item
    num_sessions = np.arange(300) % 5
    asked = is_second & torch.from_numpy(np.repeat(num_sessions == 4, 4))
    vectors_ID = model.item_vectors(int(sequences.occurred_at.max()))
    best = (model.states(last) @ vectors_ID.T)[asked][:, 1:].argmax(1) // 6
    of_user = torch.tensor([int(visitor[1:]) for visitor in users.visitors.gather_every(5)])
    share = (best == torch.from_numpy(groups)[of_user]).float().mean()
    assert share > 0.6, "a session alone tells one in five"
    names = [f"i{n:02}" for n in range(1, NUM_CODES)]
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [names]}), 1)
    save_bundle(Bundle(model, vocabulary, "hrnn", recipe, date(2026, 3, 1), 0), tmp_path / "bundle")
    again: Any = load_bundle(tmp_path / "bundle").recommender
    assert torch.equal(again.states(last), model.states(last))
