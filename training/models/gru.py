"""GRU over a session; its state after each event scores the next item.

The network of Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016
(arXiv 1511.06939), trained as a plain sequence model: whole sessions, back-propagation through all of a session.
Input and output share one item table, as in the authors' later "constrained embedding".

    x_t = E[item_t]        h_t = GRU(x_t, h_{t-1})        score(i) = h_t . E[i] + b_i

Shapes: T events · S sessions · D dimension · I item codes.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from features.vocabulary import PADDING
from training.batch import Batch
from training.models.base import SessionModel


class Gru(SessionModel):
    """One recurrent layer between a shared item table."""

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(num_codes, hidden_size, padding_idx=PADDING)
        self.bias = nn.Embedding(num_codes, 1)
        self.gru = nn.GRU(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.bias.weight)
        with torch.no_grad():
            self.items.weight[PADDING] = 0

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) the GRU's state after each event; the last column is 1 and meets the items' bias."""
        inputs_TD = self.dropout(self.items(batch.item_codes))
        steps_T, sizes = step_order(batch)
        packed, _ = self.gru(PackedSequence(inputs_TD[steps_T], sizes))
        states_TD = torch.empty_like(packed.data).index_copy(0, steps_T, packed.data)
        return torch.cat([states_TD, states_TD.new_ones(len(states_TD), 1)], dim=1)

    def item_vectors(self, as_of: int) -> Tensor:
        """(I, D + 1) the item table and the bias."""
        return torch.cat([self.items.weight, self.bias.weight], dim=1)


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
