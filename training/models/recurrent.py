"""What the recurrent models share: one layer that reads a session, between an item table that is input and output.

    x_t = E[item_t]        h_t = layer(x_t, h_{t-1})        score(i) = h_t . E[i] + b_i

Whole sessions, back-propagation through all of a session. That input and output share one table is the "constrained
embedding" of GRU4Rec's authors. A model names its layer; everything else is here.

Shapes: T events · S sessions · D dimension · I item codes.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from features.vocabulary import PADDING
from training.batch import Batch
from training.models.base import SessionModel


class Recurrent(SessionModel):
    """One recurrent layer between a shared item table."""

    layer_type: ClassVar[type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]]

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(num_codes, hidden_size, padding_idx=PADDING)
        self.bias = nn.Embedding(num_codes, 1)
        self.layer = self.layer_type(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.bias.weight)
        with torch.no_grad():
            self.items.weight[PADDING] = 0

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) the layer's state after each event; the last column is 1 and meets the items' bias."""
        inputs_TD = self.dropout(self.items(batch.item_codes))
        steps_T, sizes = step_order(batch)
        packed, _ = self.layer(PackedSequence(inputs_TD[steps_T], sizes))
        return with_one(torch.empty_like(packed.data).index_copy(0, steps_T, packed.data))

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) or (C, D + 1) the item table and the bias."""
        if codes_C is not None:
            return torch.cat([self.items(codes_C), self.bias(codes_C)], dim=1)
        return torch.cat([self.items.weight, self.bias.weight], dim=1)


def with_one(states_RD: Tensor) -> Tensor:
    """(R, D + 1) states with a column of ones, which meets the items' bias."""
    return torch.cat([states_RD, states_RD.new_ones(len(states_RD), 1)], dim=1)


def step_order(batch: Batch) -> tuple[Tensor, Tensor]:
    """The events in the order a recurrent layer takes them: all first events, all second events, …

    Returns the events' places (T), longest session first in each step, and the number of sessions in each step.
    """
    lengths_S = batch.lengths
    rank_S = lengths_S.argsort(descending=True, stable=True).argsort()
    step_T = torch.arange(len(batch.item_codes), device=lengths_S.device) - batch.offsets[:-1].repeat_interleave(
        lengths_S
    )
    key_T = step_T * (len(lengths_S) + 1) + rank_S.repeat_interleave(lengths_S)
    return key_T.argsort(), torch.bincount(step_T).cpu()
