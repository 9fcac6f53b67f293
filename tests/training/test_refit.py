"""A warm start: what a model learnt of an item follows the item into any other vocabulary."""

from datetime import date

import polars as pl
import pytest
import torch

from features.vocabulary import Vocabulary
from training.bundle import Bundle, build
from training.grow import grow
from training.recipes import SequenceRecipe


def vocabulary_of(ids):
    codes = range(1, len(ids) + 1)
    return Vocabulary(pl.DataFrame({"item_code": codes, "item_id": list(ids), "num_events": 1}))


@pytest.mark.parametrize("ids", ["cXaY", "ab", "cba", "XYZ"], ids=["some", "fewer", "moved", "none"])
@pytest.mark.parametrize("encoder", ["gru", "gru4rec", "hrnn"])
def test_rows_follow_their_items_and_new_ones_are_drawn_from_the_seed(encoder, ids):
    sequence = "user" if encoder == "hrnn" else "session"
    recipe = SequenceRecipe(encoder=encoder, sequence=sequence, hidden_size=3, seed=4)
    old = vocabulary_of("abc")
    model = build(recipe, old.num_codes)
    with torch.no_grad():
        for weights in model.parameters():
            weights += torch.rand_like(weights)
    vocabulary = vocabulary_of(ids)
    grown = grow(Bundle(model, old, encoder, recipe, date(2026, 3, 1), 0), vocabulary, recipe)
    fresh = build(recipe, vocabulary.num_codes)
    rows = {"padding": (0, 0)} | {item: ("abc".find(item) + 1, code) for code, item in enumerate(ids, 1)}
    for name, learnt in model.state_dict().items():
        now, drawn = grown.state_dict()[name], fresh.state_dict()[name]
        if not name.startswith(("items", "bias")):
            assert torch.equal(now, learnt), name
            continue
        for item, (before, code) in rows.items():
            is_old = before > 0 or item == "padding"
            assert torch.equal(now[code], learnt[before] if is_old else drawn[code]), (name, item)
