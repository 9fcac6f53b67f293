"""Several models as one: a weighted sum of their scores, which is again one dot product.

    state = [w_1 state_1; w_2 state_2; …]        v_i = [v_1i; v_2i; …]        score(i) = sum of w_k state_k . v_ki

So an ensemble has one vector for a state and one for an item, and one item index serves it. Each member learns by
itself, as its own recipe says, and reads of a batch what it learnt to read: a session, or a user's sessions.

Shapes: T events · C some items · D dimension of all members together · I item codes.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from features.sequences import Integers, Sequences
from training.batch import Batch
from training.models.base import SessionModel


class Ensemble(SessionModel):
    """Members side by side, by name."""

    def __init__(self, members: Mapping[str, SessionModel], weights: Mapping[str, float], of_users: set[str]) -> None:
        super().__init__()
        self.members = nn.ModuleDict(members)
        self.weights, self.of_users = dict(weights), of_users

    def member(self, name: str) -> SessionModel:
        """One of them."""
        found = self.members[name]
        assert isinstance(found, SessionModel)
        return found

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """For every member."""
        for name in self.members:
            self.member(name).describe_items(described)

    def begin_items(self, codes_C: Tensor) -> None:
        """In every member."""
        for name in self.members:
            self.member(name).begin_items(codes_C)

    def see(self, sequences: Sequences) -> None:
        """By every member."""
        for name in self.members:
            self.member(name).see(sequences)

    def states(self, batch: Batch) -> Tensor:
        """(T, D) the members' states, each by its weight."""
        ungrouped = replace(batch, user_offsets=None)
        return torch.cat(
            [
                weight * self.member(name).states(batch if name in self.of_users else ungrouped)
                for name, weight in self.weights.items()
            ],
            dim=1,
        )

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D) or (C, D) the members' vectors."""
        return torch.cat([self.member(name).item_vectors(as_of, codes_C) for name in self.weights], dim=1)
