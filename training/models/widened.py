"""A column more: what is known of items beside what a model has learnt of them, added to its score.

    state = [model's state; w]        v_i = [model's vector of i; x_i]        score(i) = model's score + w x_i

Shapes: B sessions side by side · R states · C some items · D dimension · I item codes.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from features.sequences import Integers, Sequences
from training.batch import Batch
from training.models.base import SessionModel


class Widened(SessionModel):
    """A session model whose states and item vectors have a column more."""

    weight: Tensor
    """() w."""

    def __init__(self, model: SessionModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def column(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I) or (C) x at a moment, microseconds since 1970."""

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """The model's own."""
        self.model.describe_items(described)

    def begin_items(self, codes_C: Tensor) -> None:
        """The model's own; nothing of them was counted."""
        self.model.begin_items(codes_C)

    def see(self, sequences: Sequences) -> None:
        """For the model."""
        self.model.see(sequences)

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) the model's states and the column's weight."""
        return self.widen(self.model.states(batch))

    def step(self, item_codes_B: Tensor, carry_BD: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a session-parallel step; the column has no state to carry."""
        states_BD, carry_BD = self.model.step(item_codes_B, carry_BD)
        return self.widen(states_BD), carry_BD

    def new_carry(self, num_sessions: int) -> Tensor:
        """The model's own."""
        return self.model.new_carry(num_sessions)

    def advance(
        self, item_codes_B: Tensor, carry_BC: Tensor | None = None, is_new_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The model's own, and the column's weight."""
        states_BD, carry_BC = self.model.advance(item_codes_B, carry_BC, is_new_B)
        return self.widen(states_BD), carry_BC

    def widen(self, states_RD: Tensor) -> Tensor:
        """(R, D + 1) states with the column's weight."""
        return torch.cat([states_RD, self.weight.expand(len(states_RD), 1)], dim=1)

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D + 1) or (C, D + 1) the model's vectors and the column."""
        return torch.cat([self.model.item_vectors(as_of, codes_C), self.column(as_of, codes_C)[:, None]], dim=1)

    def extra_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The model's own."""
        return self.model.extra_terms(batch)
