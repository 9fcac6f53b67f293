"""NARM beside its equations, and its attention in parts."""

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from training.batch import gather
from training.bundle import build
from training.models import narm
from training.models.narm import Narm
from training.recipes import RECIPES

NUM_CODES, HIDDEN = 31, 8


@pytest.fixture
def sequences() -> Sequences:
    """Sessions of a few lengths, some of which are read side by side."""
    lengths = [3, 1, 20, 9, 2, 40, 17]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    codes = np.random.default_rng(1).integers(1, NUM_CODES, offsets[-1])
    return Sequences(codes, offsets, np.arange(offsets[-1]), pl.Series([str(n) for n in range(len(lengths))]))


def make_model() -> Narm:
    model = build(RECIPES["narm"]().model_copy(update={"hidden_size": HIDDEN}), NUM_CODES)
    assert isinstance(model, Narm)
    return model.eval()


def by_the_equations(model: Narm, items: list[int]) -> list[torch.Tensor]:
    """The states of one session, each from the prefix that ends with its event."""
    cell = torch.nn.GRUCell(HIDDEN, HIDDEN)
    cell.load_state_dict({name.removesuffix("_l0"): weights for name, weights in model.layer.state_dict().items()})
    hidden, states = [torch.zeros(HIDDEN)], []
    for item in items:
        hidden.append(cell(model.items.weight[item], hidden[-1]))
        now, purpose = hidden[-1], torch.zeros(HIDDEN)
        for then in hidden[1:]:
            matters = model.weigh.weight[0] @ (model.of_now.weight @ now + model.of_then.weight @ then).sigmoid()
            purpose = purpose + matters * then
        states.append(model.wanted.weight @ torch.cat([now, purpose]))
    return states


def test_states_are_those_of_the_papers_equations(sequences):
    model = make_model()
    batch = gather(sequences, np.arange(7))
    sessions = [sequences.item_codes[sequences.events_of(np.array([n]))].tolist() for n in range(7)]
    slow = [state for items in sessions for state in by_the_equations(model, items)]
    states_TD = model.states(batch)
    torch.testing.assert_close(states_TD[:, :-1], torch.stack(slow), rtol=1e-4, atol=1e-6)
    scores_TI = states_TD @ model.item_vectors(0).T
    expected = torch.stack(slow) @ model.items.weight.T + model.bias.weight[:, 0]
    torch.testing.assert_close(scores_TI, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("numbers_at_once", [1, 9 * 9 * HIDDEN, 3 * 40 * 40 * HIDDEN])
def test_in_parts_it_gives_the_same_states_and_gradients(numbers_at_once, sequences, monkeypatch):
    model, batch = make_model(), gather(sequences, np.arange(7))
    found = []
    for at_once in (10**9, numbers_at_once):
        monkeypatch.setattr(narm, "NUMBERS_AT_ONCE", at_once)
        model.zero_grad()
        states_TD = model.states(batch)
        states_TD.square().sum().backward()
        found.append([states_TD, *(weights.grad.clone() for weights in model.parameters() if weights.grad is not None)])
    assert len(found[0]) > 8
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
