"""GRU4Rec beside the code of its authors, and what they promise beyond a step."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from training.bundle import build
from training.fit import ParallelTraining
from training.recipes import RECIPES, SequenceRecipe
from training.session_parallel import Step, parallel_steps

GOLDEN = json.loads(Path(__file__).with_name("gru4rec_steps.json").read_text())
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def sequences_of(*sessions: list[int]) -> Sequences:
    codes = np.array([code for session in sessions for code in session])
    offsets = np.cumsum([0, *map(len, sessions)])
    return Sequences(codes, offsets, np.arange(len(codes)) * 10, pl.Series([str(n) for n in range(len(sessions))]))


def codes(items: list[int]) -> torch.Tensor:
    return torch.tensor(items) + 1  # 0 is padding here, an item there


class Parity:
    """Our training, set up as the authors' was, with their negatives instead of drawn ones."""

    def __init__(self, loss: str) -> None:
        self.golden = GOLDEN[loss]
        told = self.golden["settings"]
        corrected = {"logq": told["logq"]} if loss == "cross_entropy" else {}
        ranked = {"elu": told["elu_param"], "bpr_regularisation": told["bpreg"]} if loss == "bpr_max" else {}
        self.recipe = SequenceRecipe(
            encoder="gru4rec",
            hidden_size=told["units"],
            dropout=0,
            loss=loss,
            num_negatives=told["negatives"],
            negative_alpha=told["sample_alpha"],
            in_batch_negatives=True,
            order="session_parallel",
            batch_size=told["batch"],
            optimiser="adagrad",
            learning_rate=told["learning_rate"],
            momentum=told["momentum"],
            **corrected,
            **ranked,
        )
        self.model: Any = build(self.recipe, told["items"] + 1)
        self.load(self.golden["weights_before"])
        counts = np.array(self.golden["item_counts"], dtype=np.int64)
        events = np.repeat(np.arange(1, told["items"] + 1), counts)
        self.training = ParallelTraining(self.model, sequences_of(events.tolist()), self.recipe)
        self.optimiser = self.training.configure_optimizers()
        self.training.on_train_epoch_start()

    def weights(self) -> dict[str, torch.Tensor]:
        model = self.model
        return {
            "G.0.weight_ih": model.layer.weight_ih_l0,
            "G.0.weight_hh": model.layer.weight_hh_l0,
            "G.0.bias_ih": model.layer.bias_ih_l0,
            "G.0.bias_hh": model.layer.bias_hh_l0,
            "Wy.weight": model.items.weight[1:],
            "By.weight": model.bias.weight[1:],
        }

    @torch.no_grad()
    def load(self, weights: dict[str, list[Any]]) -> None:
        for name, ours in self.weights().items():
            ours.copy_(torch.tensor(weights[name]))

    def learn(self, number: int) -> torch.Tensor:
        """Go one step; return its loss."""
        told = self.golden["steps"][number]
        batch = len(told["input_items"])
        self.training.next_item.negatives.draw = lambda: codes(told["negative_items"])
        is_new = torch.full((batch,), number == 0)
        step = Step(codes(told["input_items"]), codes(told["target_items"]), torch.arange(batch), is_new, 0)
        self.optimiser.zero_grad()
        loss = self.training.training_step(step, number)
        loss.backward()
        self.optimiser.step()
        return loss


@pytest.mark.parametrize("loss", ["cross_entropy", "bpr_max"])
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_three_steps_are_those_of_the_authors(loss):
    ours = Parity(loss)
    steps = ours.golden["steps"]
    assert len(steps) == 3
    for number, told in enumerate(steps):
        hidden_BD = torch.tensor(told["hidden_in"])
        torch.testing.assert_close(ours.training.carry_BD, hidden_BD, **EXACT)
        with torch.no_grad():
            states_BD, _ = ours.model.step(codes(told["input_items"]), hidden_BD)
            columns = codes(told["target_items"] + told["negative_items"])
            scores = states_BD @ ours.model.item_vectors(0, columns).T
        torch.testing.assert_close(scores, torch.tensor(told["scores"]), **EXACT)
        assert ours.learn(number).item() == pytest.approx(told["loss"], abs=1e-5)
        torch.testing.assert_close(ours.training.carry_BD, torch.tensor(told["hidden_out"]), **EXACT)
    for name, weights in ours.weights().items():
        torch.testing.assert_close(weights.data, torch.tensor(ours.golden["weights_after"][name]), **EXACT)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_an_ended_session_leaves_no_state_and_a_lost_slot_takes_its_state_along():
    ours = Parity("cross_entropy")
    ours.learn(0)
    before = ours.training.carry_BD
    seen = []
    step = ours.model.step
    ours.model.step = lambda item_codes_B, carry_BD: seen.append(carry_BD) or step(item_codes_B, carry_BD)
    ours.training.training_step(
        Step(codes([3, 4, 5]), codes([6, 7, 8]), torch.tensor([0, 2, 3]), torch.tensor([False, True, False]), 0), 1
    )
    assert torch.equal(seen[0], torch.stack([before[0], torch.zeros(6), before[3]]))
    assert not ours.training.carry_BD.requires_grad
    assert len(ours.training.carry_BD) == 3
    ours.training.on_train_epoch_start()
    assert not ours.training.carry_BD.any()


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_rows_that_a_step_does_not_touch_stand_still_momentum_or_not():
    ours = Parity("cross_entropy")
    ours.learn(0)
    before = {name: weights.detach().clone() for name, weights in ours.weights().items()}
    ours.learn(1)
    told = ours.golden["steps"][1]
    touched = set(told["input_items"] + told["target_items"] + told["negative_items"])
    untouched = sorted(set(range(30)) - touched)
    assert set(ours.golden["steps"][0]["negative_items"]) - touched, "some rows were moving"
    assert torch.equal(ours.weights()["Wy.weight"][untouched], before["Wy.weight"][untouched])
    assert not torch.equal(ours.weights()["Wy.weight"][sorted(touched)], before["Wy.weight"][sorted(touched)])


def test_sessions_go_side_by_side_in_order_and_the_step_shrinks_at_the_end():
    steps = list(parallel_steps(sequences_of([11, 12, 13, 14], [21, 22], [31], [41, 42, 43], [51, 52]), 2))
    told = [
        (s.item_codes_B.tolist(), s.targets_B.tolist(), s.slots_B.tolist(), s.is_new_B.tolist(), s.as_of) for s in steps
    ]
    assert told == [
        ([11, 21], [12, 22], [0, 1], [True, True], 0),
        ([12, 41], [13, 42], [0, 1], [False, True], 10),
        ([13, 42], [14, 43], [0, 1], [False, False], 20),
        ([51], [52], [0], [True], 100),
    ]


def test_a_slot_that_ends_in_the_middle_is_taken_out():
    steps = list(parallel_steps(sequences_of([1, 2, 3], [4, 5], [6, 7, 8, 9]), 5))
    assert [(s.item_codes_B.tolist(), s.slots_B.tolist()) for s in steps] == [
        ([1, 4, 6], [0, 1, 2]),
        ([2, 7], [0, 2]),
        ([8], [1]),
    ]
    assert [s.is_new_B.any().item() for s in steps] == [True, False, False]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_every_pair_of_neighbours_comes_once_an_epoch(batch_size):
    random = np.random.default_rng(4)
    sessions = [random.integers(1, 50, length).tolist() for length in random.integers(1, 9, 40)]
    pairs = [pair for session in sessions for pair in pairwise(session)]
    steps = list(parallel_steps(sequences_of(*sessions), batch_size))
    told = [pair for s in steps for pair in zip(s.item_codes_B.tolist(), s.targets_B.tolist(), strict=True)]
    assert sorted(told) == sorted(pairs)
    assert all(len(s.item_codes_B) <= batch_size for s in steps)


def test_no_sessions_take_no_steps():
    assert list(parallel_steps(sequences_of([1], [2]), 4)) == []


def test_the_recipe_is_that_of_the_authors():
    recipe = RECIPES["gru4rec"]()
    assert isinstance(recipe, SequenceRecipe)
    assert (recipe.order, recipe.optimiser, recipe.in_batch_negatives) == ("session_parallel", "adagrad", True)
    assert (recipe.num_negatives, recipe.negative_alpha, recipe.logq, recipe.epochs) == (2048, 0.5, 1, 5)
    assert (recipe.hidden_size, recipe.batch_size, recipe.learning_rate, recipe.dropout) == (128, 128, 0.07, 0.1)
