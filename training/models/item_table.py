"""What our models share: one table of items that is input and output, and mostly a bias for each item.

    x_t = dropout(E[item_t])        score(i) = state_t . E[i] + b_i

That input and output share one table is the "constrained embedding" of GRU4Rec's authors.

Shapes: T events · R states · C some items · D dimension · I item codes.
"""

import torch
from torch import Tensor, nn

from features.vocabulary import PADDING
from training.batch import Batch
from training.models.base import SessionModel


class ItemTable(SessionModel):
    """A model that reads a table of items; what turns inputs into states and the table into vectors is its own."""

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(num_codes, hidden_size, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)

    def draw_items(self) -> None:
        """Draw the table anew, padding 0; a model calls it behind its own layers."""
        nn.init.normal_(self.items.weight, std=self.items.embedding_dim**-0.5)
        with torch.no_grad():
            self.items.weight[PADDING] = 0

    def inputs(self, batch: Batch) -> Tensor:
        """(T, D) what is read of each event."""
        found: Tensor = self.dropout(self.items(batch.item_codes))
        return found


class SharedItems(ItemTable):
    """A model whose item vectors are the table, and a bias."""

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.bias = nn.Embedding(num_codes, 1)
        nn.init.zeros_(self.bias.weight)

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) or (C, D + 1) the item table and the bias."""
        if codes_C is not None:
            return torch.cat([self.items(codes_C), self.bias(codes_C)], dim=1)
        return torch.cat([self.items.weight, self.bias.weight], dim=1)


def with_one(states_RD: Tensor) -> Tensor:
    """(R, D + 1) states with a column of ones, which meets the items' bias."""
    return torch.cat([states_RD, states_RD.new_ones(len(states_RD), 1)], dim=1)
