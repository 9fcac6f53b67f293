"""The surge: whether an item is wanted in the last minutes more than over its life so far, as one more column.

    c_i = sum of 2^(-age / half_life) over events of i that followed another one in their session
    r_i = events of i in the window / (1 + hours since its first one)                both at the window's end
    score_i = model's score + w log((1 + c_i) / (1 + r_i))

Where an editor's page decides what is read, an item that has just come up has few events, and a model that learns item
by item has learnt as little of it; one that was on that page all day and is gone has many. The column tells both, and
what it tells is still true hours after the window. `w` is the recipe's, not learnt: a training meets each item in the
midst of its life, and what an item's last minutes are worth to the day after is seen on held-out days only. So training
goes on without the column.

Shapes: R states · C some items · D dimension · I item codes.
"""

from datetime import timedelta

import numpy as np
import torch
from torch import Tensor

from features.sequences import Sequences
from training.models.base import SessionModel
from training.models.widened import Widened

HOUR = 3_600_000_000  # microseconds


class WithSurge(Widened):
    """A session model whose states and item vectors have the surge as a column, but for training."""

    surge_I: Tensor

    def __init__(self, model: SessionModel, num_codes: int, half_life: timedelta, weight: float) -> None:
        super().__init__(model)
        self.half_life = half_life / timedelta(microseconds=1)
        self.register_buffer("weight", torch.tensor(weight))
        self.register_buffer("surge_I", torch.zeros(num_codes))

    def see(self, sequences: Sequences) -> None:
        """Count the events of the window."""
        super().see(sequences)
        codes, happened = sequences.item_codes, sequences.occurred_at
        num_codes, end = len(self.surge_I), happened.max()
        follows = np.ones(len(codes), dtype=bool)
        follows[sequences.offsets[:-1]] = False
        recent_I = np.bincount(codes, follows * np.exp2((happened - end) / self.half_life), minlength=num_codes)
        first_I = np.full(num_codes, end)
        np.minimum.at(first_I, codes, happened)
        rate_I = np.bincount(codes, minlength=num_codes) / (1 + (end - first_I) / HOUR)
        self.surge_I.copy_(torch.from_numpy(np.log1p(recent_I) - np.log1p(rate_I)))

    def column(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I) or (C) the surge at the end of the window, whatever the moment."""
        return self.surge_I if codes_C is None else self.surge_I[codes_C]

    def widen(self, states_RD: Tensor) -> Tensor:
        """(R, D + 1), or as they are while the model is training."""
        return states_RD if self.training else super().widen(states_RD)

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) or (C, D + 1), or the model's own while it is training."""
        return self.model.item_vectors(as_of, codes_C) if self.training else super().item_vectors(as_of, codes_C)
