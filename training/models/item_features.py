"""What the catalogue tells of an item as a part of its vector, so that an item without events has a vector, too.

    v_i = keep_i [E[i]; b_i] + sum over its features of F[feature_i]        of several categories their mean

keep_i is 0 for a tenth of the items at each step of a training, and for items that the model has not learnt: F learns
to stand for an item alone. F begins at 0, so that a model begins as it would without. The idea is DropoutNet's
(Volkovs, Yu and Poutanen, NeurIPS 2017).

Shapes: C some items · L classes of an item · X width of a vector and its bias · I item codes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from features.intents import MISSING, Definitions
from features.sequences import Integers
from training.models.context import mean_of_classes
from training.recipes import OF_ITEMS

BLANKED = 0.1


class ItemFeatures(nn.Module):
    """A vector for each class of what is told of items."""

    def __init__(self, num_codes: int, definitions: Definitions, width: int) -> None:
        super().__init__()
        named = [name for name in OF_ITEMS if name in definitions.classes and name not in definitions.columns]
        self.columns = {name: definitions.category_columns if name == "category" else (name,) for name in named}
        self.tables = nn.ModuleDict({name: nn.Embedding(len(definitions.classes[name]) + 1, width) for name in named})
        for table in self.tables.values():
            nn.init.zeros_(table.weight)
        for column in self.described:
            self.register_buffer(f"{column}_I", torch.full((num_codes,), MISSING))

    @property
    def described(self) -> list[str]:
        """The columns of `Vocabulary.described` that are read."""
        return [column for columns in self.columns.values() for column in columns]

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """Keep what the catalogue tells of items."""
        for column in self.described:
            getattr(self, f"{column}_I").copy_(torch.from_numpy(described[column]))

    def forward(self, own_CX: Tensor, codes_C: Tensor) -> Tensor:
        """(C, X) vectors of items from what is their own, (C, X) or fewer columns, and what is told of them."""
        if self.training:
            is_blank_C = torch.rand(len(codes_C), device=own_CX.device) < BLANKED
            own_CX = own_CX.masked_fill(is_blank_C[:, None], 0)
        for name, table in self.tables.items():
            told_CL = torch.stack([getattr(self, f"{column}_I")[codes_C] for column in self.columns[name]], dim=1)
            rows_CX = table(told_CL[:, 0]) if told_CL.shape[1] == 1 else mean_of_classes(table.weight, told_CL)
            own_CX = own_CX + rows_CX[:, : own_CX.shape[1]]
        return own_CX
