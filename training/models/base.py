"""The waist between models and everything else.

A model turns a batch into states and a vocabulary into item vectors; their dot product is the score. Training,
index and export never ask which model it is.

Shapes, for all of training/:  T events · S sessions · D dimension · I item codes (0 is padding) · N list length
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from features.intents import Definitions
from features.sequences import Integers, Sequences
from features.vocabulary import PADDING
from training.batch import Batch
from training.recipes import SequenceRecipe

SCORES_AT_ONCE = 2**24  # states scored at a time, times I: 64 MiB
BLOCK = 64  # columns of scores whose maximum is taken at once


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
        """The best `n` items after each unit's last event (R = S, or users). Sessions must not be empty."""
        top = self.recommend(batch, n, as_of)
        last = batch.last_events
        return TopItems(top.codes_RN[last], top.scores_RN[last], top.ties_R[last])


class SessionModel(Recommender):
    """A model whose score is a dot product."""

    @classmethod
    def of_recipe(cls, recipe: SequenceRecipe, num_codes: int, definitions: Definitions | None = None) -> Self:
        """A model as its recipe says, untrained; `definitions` for models that read more of an event than its item."""
        return cls(num_codes, recipe.hidden_size, recipe.dropout)

    def describe_items(self, described: Mapping[str, Integers]) -> None:
        """Take what the catalogue tells of items, each (I), as `Vocabulary.described` gives it; ignored by default."""

    def begin_items(self, codes_C: Tensor) -> None:
        """Let items that come new (C) begin as the model has them begin; by default as they were drawn."""

    @abstractmethod
    def states(self, batch: Batch) -> Tensor:
        """(T, D) what is wanted next after each event."""

    @abstractmethod
    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D) row = item_code; row 0 is padding. A bias or a prior (which may depend on time) is a column.

        With `codes_C` (C, D): these items' rows only, so that a step need not touch the others.
        """

    def see(self, sequences: Sequences) -> None:
        """Look at the window before training, for what is counted and not learnt; nothing by default."""

    def step(self, item_codes_B: Tensor, carry_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) the states after one more event of each session, and what is carried to the next.

        Only models that recipes can train session-parallel (`CARRYING`) have it.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be stepped")

    def new_carry(self, num_sessions: int) -> Tensor:
        """(B, C) what sessions without an event carry, for `advance`."""
        raise NotImplementedError(f"{type(self).__name__} keeps no state to advance")

    def advance(
        self, item_codes_B: Tensor, carry_BC: Tensor | None = None, is_new_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, D) the states after one more known item of each session, and (B, C) what to carry to the next.

        The states are those that reading the sessions again would give, at the cost of one step. Without a carry the
        item is the first of its visitor. Where `is_new_B` is true, it begins another session.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no state to advance")

    def extra_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Further losses by name, each ()."""
        return {}

    def session_vectors(self, batch: Batch) -> Tensor:
        """(S, D) the last state of each session; of users with several, of each user's last one."""
        return self.states(batch)[batch.last_events]

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


@torch.inference_mode()
def search_exact(states_RD: Tensor, vectors_ID: Tensor, n: int) -> TopItems:
    """The `n` items with the largest dot product for each state."""
    num_rows = max(1, min(SCORES_AT_ONCE // len(vectors_ID), len(states_RD)))
    scores_RI = states_RD.new_empty(num_rows, len(vectors_ID))
    parts = [
        top_of_scores(torch.matmul(chunk_RD, vectors_ID.T, out=scores_RI[: len(chunk_RD)]), n)
        for chunk_RD in states_RD.split(num_rows)
    ]
    return TopItems(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def top_of_scores(scores_RI: Tensor, n: int) -> TopItems:
    """The best `n` columns of a score matrix; overwrites the padding column.

    With many columns a pass over blocks of them finds their maxima; only the `n` blocks with the largest can hold the
    best `n`, so that the rest is never looked at again. The result is exact, ties are counted over all columns.
    """
    scores_RI[:, PADDING] = -torch.inf
    num_blocks, n = scores_RI.shape[1] // BLOCK, min(n, scores_RI.shape[1] - 1)
    if num_blocks < 2 * n:
        top = scores_RI.topk(n, dim=1)
        return TopItems(top.indices, top.values, count_ties(scores_RI, top.values))
    maxima_RB = scores_RI[:, : num_blocks * BLOCK].unflatten(1, (num_blocks, BLOCK)).amax(2)
    blocks_RN = maxima_RB.topk(n, dim=1, sorted=False).indices
    codes_I = torch.arange(scores_RI.shape[1], device=scores_RI.device)
    in_blocks_RC = (blocks_RN[:, :, None] * BLOCK + codes_I[:BLOCK]).flatten(1)
    codes_RC = torch.cat([in_blocks_RC, codes_I[num_blocks * BLOCK :].expand(len(scores_RI), -1)], dim=1)
    candidates_RC = scores_RI.gather(1, codes_RC)
    top = candidates_RC.topk(n, dim=1)
    ties_R = count_ties(candidates_RC, top.values)
    is_crowded_R = (maxima_RB >= top.values[:, -1:]).sum(1) > n  # a block left out may hold ties, too
    if is_crowded_R.any():
        ties_R[is_crowded_R] = count_ties(scores_RI[is_crowded_R], top.values[is_crowded_R])
    return TopItems(codes_RC.gather(1, top.indices), top.values, ties_R)


def count_ties(scores_RC: Tensor, best_RN: Tensor) -> Tensor:
    """(R) how many scores beyond the best equal the last of the best."""
    last_R1 = best_RN[:, -1:]
    return (scores_RC == last_R1).sum(1) - (best_RN == last_R1).sum(1)
