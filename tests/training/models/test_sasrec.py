"""SASRec beside its equations, with each of the losses that it can learn by."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional

from features.sequences import Sequences, encode_sessions
from features.vocabulary import learn_vocabulary
from training.batch import gather
from training.bundle import build
from training.fit import fit
from training.models.sasrec import NUM_PLACES, SasRec
from training.models.transformer import Block
from training.recipes import RECIPES, SequenceRecipe

NUM_CODES, HIDDEN, HEADS = 31, 8, 2


def recipe_of(**fields: object) -> SequenceRecipe:
    return SequenceRecipe.model_validate(RECIPES["sasrec"]().model_dump() | {"hidden_size": HIDDEN} | fields)


def make_model(**fields: object) -> SasRec:
    model = build(recipe_of(**fields), NUM_CODES)
    assert isinstance(model, SasRec)
    return model.eval()


def make_sequences(lengths: list[int]) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    codes = np.random.default_rng(1).integers(1, NUM_CODES, offsets[-1])
    return Sequences(codes, offsets, np.arange(offsets[-1]), pl.Series([str(n) for n in range(len(lengths))]))


def through(block: Block, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """One block over one session, event by event and head by head."""
    told = [block.queries_keys_values(block.before_attention(row)).view(3, HEADS, -1) for row in rows]
    found = []
    for now, row in enumerate(rows):
        heard = []
        for head in range(HEADS):
            query = told[now][0, head]
            scores = torch.stack([query @ then[1, head] / math.sqrt(len(query)) for then in told[: now + 1]])
            heard.append(sum(w * then[2, head] for w, then in zip(scores.softmax(0), told, strict=False)))
        row = row + block.joined(torch.cat(heard))
        norm, widen, _, narrow, _ = block.feed_forward
        found.append(row + narrow(functional.gelu(widen(norm(row)))))
    return found


def test_states_are_those_of_the_equations():
    model, sequences = make_model(num_layers=2), make_sequences([3, 1, 20])
    states_TD, slow = model.states(gather(sequences, np.arange(3))), []
    for number in range(3):
        items = sequences.item_codes[sequences.events_of(np.array([number]))].tolist()
        rows = [math.sqrt(HIDDEN) * model.items.weight[i] + model.places.weight[n] for n, i in enumerate(items)]
        for block in model.blocks:
            rows = through(block, rows)
        slow += [model.last(row) for row in rows]
    torch.testing.assert_close(states_TD[:, :-1], torch.stack(slow), rtol=1e-4, atol=1e-5)
    assert (states_TD[:, -1] == 1).all()


def test_the_order_of_items_counts_and_a_session_may_be_longer_than_its_places():
    model = make_model()
    told = Sequences(np.array([1, 2, 3, 2, 1, 3]), np.array([0, 3, 6]), np.arange(6), pl.Series(["a", "b"]))
    one, other = model.session_vectors(gather(told, np.arange(2)))
    assert not torch.allclose(one, other)
    endless = gather(make_sequences([NUM_PLACES + 9]), np.arange(1))
    assert model.states(endless).isfinite().all()


@pytest.mark.parametrize(
    ("loss", "epochs"),
    [({}, 8), ({"negative_alpha": 0.5, "in_batch_negatives": True}, 8), ({"loss": "gbce"}, 24)],
    ids=["sampled", "in_batch", "gbce"],
)
def test_it_learns_by_drawn_items_too(loss, epochs, walk, sessions_of, tmp_path):
    """A shop where the next item follows from the last one; by all items it is tested with every model."""
    sessions = sessions_of(walk(250, follows=1.0, seed=1))
    vocabulary = learn_vocabulary(sessions, 1)
    recipe = recipe_of(hidden_size=24, dropout=0.0, batch_size=32, learning_rate=1e-2, num_negatives=20, **loss)
    model = build(recipe, vocabulary.num_codes)
    sequences = encode_sessions(sessions, vocabulary)
    fit(model, sequences, recipe, epochs, tmp_path)
    batch = gather(sequences, np.arange(100))
    best = model.recommend_targets(batch, 1, 0).codes_RN[:, 0]
    assert (best == batch.targets()).float().mean() > 0.9
