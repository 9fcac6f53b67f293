"""What our models share: one table of items that is input and output, and mostly a bias for each item.

    x_t = dropout(E[item_t] + W c_t)        score(i) = state_t . E[i] + b_i

That input and output share one table is the "constrained embedding" of GRU4Rec's authors. c_t is what else is told of
an event (training/models/context.py), where the recipe wants any; W begins at 0, so that a model begins as without it.
Where the recipe wants cold items, a part of each vector is what the catalogue tells of the item
(training/models/item_features.py).

Shapes: T events · R states · C some items · D dimension · I item codes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from features.sequences import Integers
from features.vocabulary import PADDING
from training.batch import Batch
from training.models.base import SessionModel
from training.models.context import Context
from training.models.item_features import ItemFeatures


class ItemTable(SessionModel):
    """A model that reads a table of items; what turns inputs into states and the table into vectors is its own."""

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.items = nn.Embedding(num_codes, hidden_size, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.context: Context | None = None
        self.of_context: nn.Linear | None = None
        self.features: ItemFeatures | None = None

    def read_context(self, context: Context) -> None:
        """Read this beside items, too."""
        self.context, self.of_context = context, nn.Linear(context.width, self.items.embedding_dim, bias=False)
        self.context.draw()
        nn.init.zeros_(self.of_context.weight)

    def read_features(self, features: ItemFeatures) -> None:
        """Make this a part of the items' vectors."""
        self.features = features

    def of_told(self) -> list[nn.Parameter]:
        """The weights of what is told beside items."""
        parts = [part for part in (self.context, self.of_context, self.features) if part is not None]
        return [weights for part in parts for weights in part.parameters()]

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """For the context and the features."""
        for told in (self.context, self.features):
            if told is not None:
                told.describe_items(described)

    def begin_items(self, codes_C: Tensor) -> None:
        """Let items that come new begin as what is told of them; without features as they were drawn."""
        if self.features is not None:
            with torch.no_grad():
                self.items.weight[codes_C] = 0

    def items_only(self) -> None:
        """Raise NotImplementedError where more is read than items: a state that goes on by an item would miss it."""
        if self.context is not None:
            raise NotImplementedError(f"{type(self).__name__} reads context, and keeps no state to advance")

    def learnt_only(self) -> None:
        """Raise NotImplementedError where a state could not be kept from day to day, as an item's code may change."""
        self.items_only()
        if self.features is not None:
            raise NotImplementedError(f"{type(self).__name__} takes cold items, and keeps no state")

    def draw_items(self) -> None:
        """Draw the table anew, padding 0; a model calls it behind its own layers."""
        nn.init.normal_(self.items.weight, std=self.items.embedding_dim**-0.5)
        with torch.no_grad():
            self.items.weight[PADDING] = 0

    def rows(self, codes_C: Tensor) -> Tensor:
        """(C, D) of the table, with what is told of the items."""
        found: Tensor = self.items(codes_C)
        return found if self.features is None else self.features(found, codes_C)

    def all_codes(self) -> Tensor:
        """(I)"""
        return torch.arange(self.items.num_embeddings, device=self.items.weight.device)

    def inputs(self, batch: Batch) -> Tensor:
        """(T, D) what is read of each event."""
        inputs_TD = self.rows(batch.item_codes)
        if self.context is not None and self.of_context is not None:
            inputs_TD = inputs_TD + self.of_context(self.context(batch))
        found: Tensor = self.dropout(inputs_TD)
        return found


class SharedItems(ItemTable):
    """A model whose item vectors are the table, and a bias."""

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.bias = nn.Embedding(num_codes, 1)
        nn.init.zeros_(self.bias.weight)

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) or (C, D + 1) the item table and the bias."""
        if self.features is not None:
            codes_C = self.all_codes() if codes_C is None else codes_C
            return self.features(torch.cat([self.items(codes_C), self.bias(codes_C)], dim=1), codes_C)
        if codes_C is not None:
            return torch.cat([self.items(codes_C), self.bias(codes_C)], dim=1)
        return torch.cat([self.items.weight, self.bias.weight], dim=1)

    def begin_items(self, codes_C: Tensor) -> None:
        """The biases, too."""
        super().begin_items(codes_C)
        if self.features is not None:
            with torch.no_grad():
                self.bias.weight[codes_C] = 0


def with_one(states_RD: Tensor) -> Tensor:
    """(R, D + 1) states with a column of ones, which meets the items' bias."""
    return torch.cat([states_RD, states_RD.new_ones(len(states_RD), 1)], dim=1)
