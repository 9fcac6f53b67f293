"""Reasons on models whose reasons are known, and on every kind of recommender."""

from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
import torch

from features.sequences import Sequences
from features.vocabulary import learn_vocabulary
from training.batch import gather
from training.bundle import Bundle, build
from training.faithfulness import faithfulness
from training.models import MODELS
from training.models.base import SessionModel
from training.reasons import integrated_gradients, leave_one_out, score_items, without_each
from training.recipes import RECIPES, MarkovRecipe, SequenceRecipe

NUM_CODES = 13
AS_OF = 1_772_409_600_000_000


class Sum(SessionModel):
    """What is wanted is the sum of what was had: the reasons of item i are E[event] . E[i], for every method."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.items = torch.nn.Embedding(NUM_CODES, 4)

    def states(self, batch):
        total_TD = self.items(batch.item_codes).cumsum(0)
        starts_S = batch.offsets[:-1]
        before_SD = torch.cat([total_TD.new_zeros(1, 4), total_TD])[starts_S]
        return total_TD - before_SD.repeat_interleave(batch.lengths, dim=0)

    def item_vectors(self, as_of, codes_C=None):
        return self.items.weight if codes_C is None else self.items(codes_C)


def sequences_of(lengths: list[int], seed: int = 0) -> Sequences:
    codes = np.random.default_rng(seed).integers(1, NUM_CODES, sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Sequences(codes, offsets, np.arange(len(codes)) + AS_OF, pl.Series(["v"] * len(lengths), dtype=pl.String))


def bundle_of(recommender) -> Bundle:
    vocabulary = learn_vocabulary(pl.DataFrame({"item_ids": [[f"i{n:02d}" for n in range(NUM_CODES - 1)]]}), 1)
    return Bundle(recommender.eval(), vocabulary, "r", RECIPES["gru"](), date(2026, 3, 1), AS_OF)


def built(name: str) -> Bundle:
    recipe = RECIPES[name]()
    if isinstance(recipe, SequenceRecipe):
        recipe = recipe.model_copy(update={"hidden_size": 8})
    recommender = build(recipe, NUM_CODES)
    if not isinstance(recipe, SequenceRecipe):
        recommender.fit(sequences_of([4, 6, 3, 5], seed=2), AS_OF)
    return bundle_of(recommender)


def test_each_event_is_left_out_in_turn():
    shortened = without_each(
        Sequences(np.array([5, 6, 7, 8]), np.array([0, 3, 4]), np.arange(4), pl.Series(["a", "b"]))
    )
    assert [
        shortened.item_codes[a:b].tolist() for a, b in zip(shortened.offsets, shortened.offsets[1:], strict=False)
    ] == [[6, 7], [5, 7], [5, 6], []]
    assert shortened.visitors.to_list() == ["a", "a", "a", "b"]


def test_where_reasons_add_up_both_methods_find_them():
    bundle, sequences = bundle_of(Sum()), sequences_of([4, 1, 3])
    table = bundle.recommender.items.weight.detach()
    wanted = np.array([[2, 9], [3, 3], [1, 12]])
    influence_TN = leave_one_out(bundle, sequences, wanted)
    of_event = sequences.session_of_event()
    events = table[torch.from_numpy(sequences.item_codes)]
    expected = torch.einsum("td,tnd->tn", events, table[torch.from_numpy(wanted[of_event])])
    np.testing.assert_allclose(influence_TN, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(integrated_gradients(bundle, sequences, wanted[:, 0]), expected[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, "markov", "vs_knn", "popularity"])
def test_influence_is_what_the_score_loses_without_the_event(name):
    bundle, sequences = built(name), sequences_of([5, 2, 1])
    wanted = np.array([[1, 2], [3, 4], [5, 6]])
    influence_TN = leave_one_out(bundle, sequences, wanted)
    assert influence_TN.shape == (8, 2)
    whole = score_items(bundle, sequences, wanted)
    middle = np.array([0, 1, 3, 4])
    shorter = Sequences(
        sequences.item_codes[middle], np.array([0, 4]), sequences.occurred_at[middle], sequences.visitors[:1]
    )
    np.testing.assert_allclose(influence_TN[2], (whole[:1] - score_items(bundle, shorter, wanted[:1]))[0], atol=1e-5)
    np.testing.assert_allclose(influence_TN[7], whole[2], err_msg="the only event has the whole score")


def test_of_a_user_events_of_earlier_sessions_have_influence_too():
    bundle, sessions = built("hrnn"), sequences_of([3, 1, 2, 4, 1])
    users = replace(sessions, user_offsets=np.array([0, 3, 5]))
    wanted = np.array([[1, 2], [3, 4]])
    influence_TN = leave_one_out(bundle, users, wanted)
    whole = score_items(bundle, users, wanted)
    for event, user in ((1, 0), (3, 0), (4, 0), (6, 1), (10, 1)):
        is_kept = np.arange(11) != event
        shorter = users.only(is_kept).at_least(1).take_units(np.array([user]))
        expected = whole[user] - score_items(bundle, shorter, wanted[[user]])[0]
        np.testing.assert_allclose(influence_TN[event], expected, atol=1e-6, err_msg=str(event))
    assert (abs(influence_TN) > 1e-7).all()
    alone = leave_one_out(bundle, sessions.take(np.array([2])), wanted[:1])
    assert not np.allclose(alone, influence_TN[4:6], atol=1e-7), "what an event does depends on the sessions before"


def test_sessions_are_told_apart_however_many_are_read_at_once(monkeypatch):
    bundle, sequences = built("gru"), sequences_of([5, 2, 9, 1, 3])
    wanted = np.arange(1, 11).reshape(5, 2)
    at_once = leave_one_out(bundle, sequences, wanted)
    monkeypatch.setattr("training.reasons.EVENTS_AT_ONCE", 20)
    np.testing.assert_allclose(leave_one_out(bundle, sequences, wanted), at_once, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_integrated_gradients_are_complete(name):
    """What the events add is the score less that of a session of zero vectors."""
    bundle, sequences = built(name), sequences_of([5, 2, 7])
    wanted = np.array([3, 8, 1])
    found = integrated_gradients(bundle, sequences, wanted, steps=256)
    table = bundle.recommender.items
    with torch.no_grad():
        handle = table.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        vectors_SD = bundle.recommender.session_vectors(gather(sequences, np.arange(3)))
        handle.remove()
        at_zero = (vectors_SD * bundle.recommender.item_vectors(AS_OF)[torch.from_numpy(wanted)]).sum(1)
    gained = score_items(bundle, sequences, wanted[:, None])[:, 0] - at_zero.numpy()
    np.testing.assert_allclose(np.add.reduceat(found, sequences.offsets[:-1]), gained, atol=1e-3)


def test_a_baseline_has_no_gradients():
    with pytest.raises(TypeError, match="Markov has no item table"):
        integrated_gradients(bundle_of(build(MarkovRecipe(), NUM_CODES)), sequences_of([2]), np.array([1]))


def test_true_reasons_are_more_faithful_than_random_ones():
    found = faithfulness(bundle_of(Sum()), sequences_of([8, 2, 12, 30, 6, 9, 7, 5] * 4, seed=5))
    assert found["reasons/num_sessions"] == 28, "two events are too few"
    assert found["reasons/deletion"] < found["reasons/deletion_random"] - 0.1
    assert found["reasons/insertion"] > found["reasons/insertion_random"] + 0.05


def test_of_a_model_that_looks_at_the_newest_event_only_no_other_one_matters():
    bundle, sequences = built("markov"), sequences_of([6, 7, 3])
    influence_TN = leave_one_out(bundle, sequences, np.tile(np.arange(1, NUM_CODES), (3, 1)))
    is_newest = np.isin(np.arange(16), sequences.offsets[1:] - 1)
    assert not influence_TN[~is_newest].any()
    assert influence_TN[is_newest].any(1).all()


def test_without_long_sessions_nothing_is_claimed():
    assert faithfulness(built("gru"), sequences_of([1, 2, 2])) == {}
