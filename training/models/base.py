"""The waist between models and everything else.

A model turns a batch into states and a vocabulary into item vectors; their dot product is the score. Training,
index and export never ask which model it is.

Shapes, for all of training/:  T events · S sessions · D dimension · I item codes (0 is padding) · N list length
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from features.vocabulary import PADDING
from training.batch import Batch

ROWS_AT_ONCE = 2048  # states scored at a time: bounds the (rows, I) score matrix


class TopItems(NamedTuple):
    """The best N items after each of R events."""

    codes_RN: Tensor
    scores_RN: Tensor
    ties_R: Tensor
    """Items outside the list whose score equals the last one's: an honest rank counts them against us."""


class Recommender(nn.Module):
    """Anything that can fill a list: models and baselines."""

    def recommend(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best `n` items after each event of the batch (R = T), never padding; `as_of` in microseconds."""
        raise NotImplementedError

    def recommend_targets(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best `n` items at each target, before it is known (R = targets of the batch)."""
        return TopItems(*(column[batch.target_mask] for column in self.recommend(batch, n, as_of)))

    def recommend_last(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """The best `n` items after each session's last event (R = S). Sessions must not be empty."""
        top = self.recommend(batch, n, as_of)
        last = batch.offsets[1:] - 1
        return TopItems(top.codes_RN[last], top.scores_RN[last], top.ties_R[last])


class SessionModel(Recommender):
    """A model whose score is a dot product."""

    @abstractmethod
    def states(self, batch: Batch) -> Tensor:
        """(T, D) what is wanted next after each event."""

    @abstractmethod
    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D) row = item_code; row 0 is padding. A bias or a prior (which may depend on time) is a column.

        With `codes_C` (C, D): these items' rows only, so that a step need not touch the others.
        """

    def extra_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Further losses by name, each ()."""
        return {}

    def session_vectors(self, batch: Batch) -> Tensor:
        """(S, D) the last state of each session."""
        return self.states(batch)[batch.offsets[1:] - 1]

    @torch.inference_mode()
    def recommend(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """Exact search for all states."""
        return search_exact(self.states(batch), self.item_vectors(as_of), n)

    @torch.inference_mode()
    def recommend_targets(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """Exact search for the states before targets only."""
        return search_exact(self.states(batch)[batch.target_mask], self.item_vectors(as_of), n)

    @torch.inference_mode()
    def recommend_last(self, batch: Batch, n: int, as_of: int) -> TopItems:
        """Exact search for the last states only."""
        return search_exact(self.session_vectors(batch), self.item_vectors(as_of), n)


def search_exact(states_RD: Tensor, vectors_ID: Tensor, n: int) -> TopItems:
    """The `n` items with the largest dot product for each state."""
    parts = [top_of_scores(chunk_RD @ vectors_ID.T, n) for chunk_RD in states_RD.split(ROWS_AT_ONCE)]
    if not parts:
        return TopItems(torch.empty(0, n, dtype=torch.long), torch.empty(0, n), torch.empty(0, dtype=torch.long))
    return TopItems(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def top_of_scores(scores_RI: Tensor, n: int) -> TopItems:
    """The best `n` columns of a score matrix; overwrites the padding column."""
    scores_RI[:, PADDING] = -torch.inf
    n = min(n, scores_RI.shape[1] - 1)
    top = scores_RI.topk(n, dim=1)
    last_R1 = top.values[:, -1:]
    ties_R = (scores_RI == last_R1).sum(1) - (top.values == last_R1).sum(1)
    return TopItems(top.indices, top.values, ties_R)
