"""The same model for other items: what it has learnt of those that both know, and a beginning for new ones."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.intents import Definitions
from features.vocabulary import PADDING, Vocabulary
from training.bundle import Bundle, build, build_for
from training.models.base import SessionModel
from training.recipes import LearntRecipe


def grow(bundle: Bundle, vocabulary: Vocabulary, recipe: LearntRecipe) -> SessionModel:
    """The same model for another vocabulary: rows follow their item_id, rows of new items are drawn from the seed."""
    grown: Any = build_for(recipe, vocabulary)
    old_C, new_C = shared_codes(bundle.vocabulary, vocabulary)
    state, of_items = grown.state_dict(), item_dimensions(recipe, vocabulary.definitions)
    for name, learnt in bundle.recommender.state_dict().items():
        if name in of_items:
            state[name].index_copy_(of_items[name], new_C, learnt.index_select(of_items[name], old_C))
        else:
            state[name] = learnt
    grown.load_state_dict(state)
    is_new_I = torch.ones(vocabulary.num_codes, dtype=torch.bool).index_fill(0, new_C, False)
    grown.begin_items(is_new_I.nonzero()[:, 0])
    grown.describe_items(vocabulary.described())
    return grown


def shared_codes(old: Vocabulary, new: Vocabulary) -> tuple[Tensor, Tensor]:
    """(C) and (C) the codes of each item that both know, padding among them."""
    both = old.items.join(new.items, on="item_id", suffix="_new")
    old_C, new_C = (np.append(both[name].to_numpy(), PADDING) for name in ("item_code", "item_code_new"))
    return torch.from_numpy(old_C), torch.from_numpy(new_C)


def item_dimensions(recipe: LearntRecipe, definitions: Definitions | None = None) -> dict[str, int]:
    """Which of a model's tensors hold something of each item, and in which dimension: what grows with the items."""
    small, large = (build(recipe, num_codes, definitions).state_dict() for num_codes in (2, 3))
    differences = {
        name: [d for d, size in enumerate(tensor.shape) if size != large[name].shape[d]]
        for name, tensor in small.items()
    }
    return {name: found[0] for name, found in differences.items() if found}
