"""A session retriever: two towers, of what happened so far and of items, that meet at a cosine.

    p_t      = pool(E[item_1] .. E[item_t])            `pooling: mean`, or `gru`: the state of a GRU
    s_t      = unit(W_s [p_t; u] + b_s)                u: of users, the mean of p at the end of each earlier session
    v_i      = unit(W_i E[i] + b_i)
    score(i) = exp(k) s_t . v_i                        a cosine over a temperature, which is learnt with the rest

The temperature belongs to the state, so the score is a plain dot product, and the same one in training (softmax over
all items, or drawn ones), evaluation, the item index and anything that serves it. Losses that know no temperature, like
binary cross-entropy of (cosine + 1) / 2, saturate: a cosine has nowhere left to go.

With `sequence: user` there is a user tower, u; no table of user ids, so whoever comes new has u = 0, and nobody is
unknown. With `sequence: session` there is none.

Shapes: T events · S sessions · U users · C some items · D dimension · I item codes.
"""

import math
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from features.intents import Definitions
from training.batch import Batch
from training.models.item_table import ItemTable
from training.models.recurrent import read_each
from training.models.transformer import group_sessions
from training.recipes import SequenceRecipe

FIRST_TEMPERATURE = 0.07
LOWEST_TEMPERATURE = 0.01
"""Below it a softmax over cosines is a choice of one item, and has no gradient."""


class SessionRetriever(ItemTable):
    """A tower of sessions, with or without one of users, and a tower of items."""

    def __init__(
        self,
        num_codes: int,
        hidden_size: int,
        dropout: float,
        pooling: Literal["mean", "gru"] = "gru",
        has_users: bool = False,
    ) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.layer = nn.GRU(hidden_size, hidden_size) if pooling == "gru" else None
        self.has_users = has_users
        self.of_session = nn.Linear(hidden_size * (2 if has_users else 1), hidden_size)
        self.of_item = nn.Linear(hidden_size, hidden_size)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))
        self.draw_items()

    @classmethod
    def of_recipe(cls, recipe: SequenceRecipe, num_codes: int, definitions: Definitions | None = None) -> Self:
        """With the recipe's pooling; a user tower where it reads users."""
        sizes = (num_codes, recipe.hidden_size, recipe.dropout)
        return cls(*sizes, recipe.pooling, recipe.sequence == "user")

    def states(self, batch: Batch) -> Tensor:
        """(T, D) what is wanted after each event, of length one over the temperature."""
        pooled_TD = self.pool(self.inputs(batch), batch.offsets)
        if self.has_users:
            users_SD = earlier_means(pooled_TD, batch)
            pooled_TD = torch.cat([pooled_TD, users_SD.repeat_interleave(batch.lengths, dim=0)], dim=1)
        scale = self.log_scale.clamp(max=-math.log(LOWEST_TEMPERATURE)).exp()
        return functional.normalize(self.of_session(pooled_TD), dim=1) * scale

    def item_vectors(self, as_of: int, codes_C: Tensor | None = None) -> Tensor:
        """(I, D) or (C, D) of length one."""
        is_whole = codes_C is None and self.features is None
        rows = self.items.weight if is_whole else self.rows(self.all_codes() if codes_C is None else codes_C)
        return functional.normalize(self.of_item(rows), dim=1)

    def pool(self, inputs_TD: Tensor, offsets: Tensor) -> Tensor:
        """(T, D) each session up to each of its events."""
        if self.layer is not None:
            return read_each(self.layer, inputs_TD, offsets)
        return mean_before(inputs_TD, offsets, with_itself=True)


def earlier_means(pooled_TD: Tensor, batch: Batch) -> Tensor:
    """(S, D) of each session the mean of what its user's earlier ones pooled to; 0 where there is none."""
    is_there_S = batch.lengths > 0
    last_SD = pooled_TD.new_zeros(len(is_there_S), pooled_TD.shape[1])
    if batch.user_offsets is None:
        return last_SD
    last_SD = last_SD.index_copy(0, is_there_S.nonzero()[:, 0], pooled_TD[batch.offsets[1:][is_there_S] - 1])
    num_there_U = torch.cat([is_there_S.new_zeros(1), is_there_S]).cumsum(0)[batch.user_offsets]
    found_SD = mean_before(last_SD[is_there_S], num_there_U, with_itself=False)
    return last_SD.index_copy(0, is_there_S.nonzero()[:, 0], found_SD)


def mean_before(rows_TD: Tensor, offsets: Tensor, with_itself: bool) -> Tensor:
    """(T, D) the mean of the rows that `offsets` keep together up to each, or before it; 0 where there is none."""
    found_TD = torch.zeros_like(rows_TD)
    for group in group_sessions(offsets):
        looks_LL = rows_TD.new_ones(group.length, group.length).tril(0 if with_itself else -1)
        shares_LL = looks_LL / looks_LL.sum(1, keepdim=True).clamp(min=1)
        means_SLD = shares_LL @ group.side_by_side(rows_TD)
        found_TD = found_TD.index_copy(0, group.events_P, group.end_to_end(means_SLD))
    return found_TD
