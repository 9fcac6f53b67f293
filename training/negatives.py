"""Items that a step's targets are held against when not all items are: drawn by popularity, and the other targets.

An item is drawn with p ~ count^alpha: 0 is uniform, 1 is by popularity. One draw serves all rows of a step. A drawn
item may be a row's own target; like the authors of GRU4Rec we leave it in.

Shapes: R states that have a target · D dimension · I item codes · N items drawn · C columns of scores.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from features.vocabulary import PADDING
from training.models.base import SessionModel


class Candidates(NamedTuple):
    """The scores of each row's target and negatives."""

    scores_RC: Tensor
    columns_R: Tensor
    """Where each row's target stands."""
    log_frequencies: Tensor
    """(R, C) or (C) log of how often an item comes into its column, up to a constant: what logQ takes away."""


class Negatives(nn.Module):
    """Draws `num_drawn` items a step; with `in_batch` the other rows' targets are negatives too."""

    log_counts_I: Tensor
    cumulative: Tensor

    def __init__(self, counts_I: Tensor, num_drawn: int, alpha: float, in_batch: bool) -> None:
        super().__init__()
        self.num_drawn, self.alpha, self.in_batch = num_drawn, alpha, in_batch
        counts_I = counts_I.double().clamp(min=1)  # an item without events in this training can be drawn, too
        shares = counts_I[PADDING + 1 :] ** alpha
        self.register_buffer("log_counts_I", counts_I.log().float(), persistent=False)
        self.register_buffer("cumulative", shares.cumsum(0) / shares.sum(), persistent=False)

    def draw(self) -> Tensor:
        """(N) item codes, with repetition, never padding."""
        places_N = torch.rand(self.num_drawn, dtype=self.cumulative.dtype, device=self.cumulative.device)
        found_N = torch.searchsorted(self.cumulative, places_N, right=True)
        return found_N.clamp(max=len(self.cumulative) - 1) + PADDING + 1

    def forward(self, model: SessionModel, states_RD: Tensor, targets_R: Tensor, as_of: int) -> Candidates:
        """Score each row's target and the step's negatives."""
        drawn_N, num_rows = self.draw(), len(targets_R)
        vectors_CD = model.item_vectors(as_of, torch.cat([targets_R, drawn_N]))
        of_targets_R, of_drawn_N = self.log_counts_I[targets_R], self.alpha * self.log_counts_I[drawn_N]
        if self.in_batch:
            rows_R = torch.arange(num_rows, device=targets_R.device)
            return Candidates(states_RD @ vectors_CD.T, rows_R, torch.cat([of_targets_R, of_drawn_N]))
        own_R1 = (states_RD * vectors_CD[:num_rows]).sum(1, keepdim=True)
        frequencies = torch.cat([self.alpha * of_targets_R[:, None], of_drawn_N.expand(num_rows, -1)], dim=1)
        scores_RC = torch.cat([own_R1, states_RD @ vectors_CD[num_rows:].T], dim=1)
        return Candidates(scores_RC, torch.zeros_like(targets_R), frequencies)
