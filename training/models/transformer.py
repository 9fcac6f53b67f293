"""A causal Transformer over ragged sessions: everything but attention runs on the flat events.

Pre-norm blocks (Xiong et al. 2020):  x + attention(norm(x)),  then  x + feed_forward(norm(x)).

For attention alone sessions are padded, in groups of about the same length, so that one long session does not make the
others long. Padding stands behind a session's events, and no event looks ahead, so it is never looked at.

Shapes: T events · P events of a group · S sessions of a group · L places of a group · D dimension · H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SHORTEST = 8


class Group(NamedTuple):
    """Sessions of about the same length, side by side."""

    events_P: Tensor
    """Places in T."""
    places_P: Tensor
    """Where each event stands among S x L padded places."""
    num_sessions: int
    length: int
    mask: Tensor | None
    """(S, 1, L, L) which event (row) looks at which (column); None: at all before it and at itself."""

    def side_by_side(self, rows_TD: Tensor) -> Tensor:
        """(S, L, D) the rows of the group's events, 0 behind a session's last."""
        padded = rows_TD.new_zeros(self.num_sessions * self.length, rows_TD.shape[1])
        return padded.index_copy(0, self.places_P, rows_TD[self.events_P]).unflatten(0, (self.num_sessions, -1))

    def end_to_end(self, padded_SLD: Tensor) -> Tensor:
        """(P, D) the other way round."""
        return padded_SLD.flatten(0, 1)[self.places_P]


def group_sessions(offsets: Tensor, occurred_at: Tensor | None = None, window: int = 0) -> list[Group]:
    """The groups of a batch; with `occurred_at` (T) events look back no further than `window` microseconds."""
    lengths_S = offsets.diff()
    session_T = torch.arange(len(lengths_S), device=offsets.device).repeat_interleave(lengths_S)
    place_T = place_in(offsets)
    level_S = (lengths_S.clamp(min=SHORTEST) - 1).to(torch.float64).log2().floor().long()  # lengths up to 2^(level + 1)
    found = []
    for level in level_S[lengths_S > 0].unique().tolist():
        is_here_S = (level_S == level) & (lengths_S > 0)
        length = int(lengths_S[is_here_S].max())
        events_P = is_here_S[session_T].nonzero()[:, 0]
        row_S = is_here_S.cumsum(0) - 1
        places_P = row_S[session_T[events_P]] * length + place_T[events_P]
        num_sessions, mask = int(is_here_S.sum()), None
        if occurred_at is not None:
            at_SL = occurred_at.new_zeros(num_sessions * length).index_copy(0, places_P, occurred_at[events_P])
            at_SL = at_SL.view(num_sessions, length)
            is_recent_SLL = at_SL[:, :, None] - at_SL[:, None, :] <= window
            mask = (is_recent_SLL & torch.ones_like(is_recent_SLL[0]).tril())[:, None]
        found.append(Group(events_P, places_P, num_sessions, length, mask))
    return found


def place_in(offsets: Tensor) -> Tensor:
    """(T) the place of each event in its session, from 0."""
    starts_T = offsets[:-1].repeat_interleave(offsets.diff())
    return torch.arange(len(starts_T), device=offsets.device) - starts_T


class Block(nn.Module):
    """One layer: attention, then a feed-forward network, each beside a residual."""

    def __init__(self, dimension: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.before_attention = nn.LayerNorm(dimension)
        self.queries_keys_values = nn.Linear(dimension, 3 * dimension)
        self.joined = nn.Linear(dimension, dimension)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dimension),
            nn.Linear(dimension, 2 * dimension),
            nn.GELU(),
            nn.Linear(2 * dimension, dimension),
            nn.Dropout(dropout),
        )

    def forward(self, inputs_TD: Tensor, groups: list[Group]) -> Tensor:
        """(T, D) from (T, D)."""
        told_TD = self.queries_keys_values(self.before_attention(inputs_TD))
        heard_TD = torch.zeros_like(inputs_TD)
        for group in groups:
            heard_TD = heard_TD.index_copy(0, group.events_P, self.attend(told_TD, group))
        inputs_TD = inputs_TD + functional.dropout(self.joined(heard_TD), self.dropout, self.training)
        found: Tensor = inputs_TD + self.feed_forward(inputs_TD)
        return found

    def attend(self, told_TD: Tensor, group: Group) -> Tensor:
        """(P, D) what the events of a group hear from (T, 3 D) queries, keys and values."""
        told_SLD = group.side_by_side(told_TD)
        queries, keys, values = told_SLD.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heard_SHLD = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=group.mask, is_causal=group.mask is None
        )
        return group.end_to_end(heard_SHLD.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Features of events to states: a projection with the place in the session, layers, and a last norm."""

    NUM_PLACES = 64

    def __init__(self, num_features: int, dimension: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(num_features, dimension), nn.LayerNorm(dimension))
        self.places = nn.Embedding(self.NUM_PLACES, dimension)
        self.blocks = nn.ModuleList(Block(dimension, num_heads, dropout) for _ in range(num_layers))
        self.last = nn.LayerNorm(dimension)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, features_TF: Tensor, place_T: Tensor, groups: list[Group]) -> Tensor:
        """(T, D) the state of each event; places beyond the last one that is known count as that one."""
        states_TD = self.project(features_TF) + self.places(place_T.clamp(max=self.NUM_PLACES - 1))
        for block in self.blocks:
            states_TD = block(states_TD, groups)
        found: Tensor = self.last(states_TD)
        return found
