"""SASRec: a causal Transformer over the items of a session.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv 1808.09781). For event t of a session:

    x_t      = sqrt(D) E[item_t] + P[t]
    x        = block(x), `num_layers` of them         attention over the events up to t, then a feed-forward network
    state_t  = norm(x_t)                              score(i) = state_t . E[i] + b_i

Which loss it learns by is the recipe's: all items (`cross_entropy`), drawn ones (`num_negatives`), or `gbce`, which is
gSASRec (Petrov and Macdonald, RecSys 2023). The paper's own, one drawn item a target, is known to be far worse.

Where this differs from the authors' code: norms come first in a block, also before the feed-forward network, which is
twice as wide inside and has a GELU (training/models/transformer.py); scores have a bias for each item; places are
counted from the start of a session, so that the states of all its events come from one pass, and from place 255 on
they are one.

With users for sequences, a user's sessions are one long one.

Shapes: T events · D dimension.
"""

from typing import Self

from torch import Tensor, nn

from features.intents import Definitions
from training.batch import Batch
from training.models.item_table import SharedItems, with_one
from training.models.transformer import Block, group_sessions, place_in
from training.recipes import SequenceRecipe

NUM_PLACES = 256


class SasRec(SharedItems):
    """Attention between a shared item table."""

    def __init__(
        self, num_codes: int, hidden_size: int, dropout: float, num_layers: int = 1, num_heads: int = 2
    ) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.places = nn.Embedding(NUM_PLACES, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, dropout) for _ in range(num_layers))
        self.last = nn.LayerNorm(hidden_size)
        nn.init.normal_(self.places.weight, std=0.1)
        self.draw_items()

    @classmethod
    def of_recipe(cls, recipe: SequenceRecipe, num_codes: int, definitions: Definitions | None = None) -> Self:
        """With the recipe's layers and heads."""
        return cls(num_codes, recipe.hidden_size, recipe.dropout, recipe.num_layers, recipe.num_heads)

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) what is wanted after each event; the last column is 1 and meets the items' bias."""
        offsets = batch.unit_offsets
        groups, place_T = group_sessions(offsets), place_in(offsets).clamp(max=NUM_PLACES - 1)
        states_TD = self.inputs(batch) * self.items.embedding_dim**0.5 + self.places(place_T)
        for block in self.blocks:
            states_TD = block(states_TD, groups)
        return with_one(self.last(states_TD))
