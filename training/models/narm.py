"""NARM: what a GRU remembers, beside what attention looks up among its earlier states.

Li, Ren, Chen, Ren, Lian and Ma, "Neural Attentive Session-based Recommendation", CIKM 2017 (arXiv 1711.04725). For
event t of a session:

    h_t      = GRU(E[item_t], h_{t-1})
    a_{t,j}  = v . sigmoid(A1 h_t + A2 h_j)          how much event j, not after t, matters now; no softmax
    c_t      = [h_t; sum_j a_{t,j} h_j]              the whole session, and its main purpose
    state_t  = B c_t                                 score(i) = state_t . E[i] + b_i

Where this differs from the authors' code: theirs is shown a session once for each of its prefixes, here all events of a
session are learnt in one pass, each state from what was before it; scores have a bias for each item; and both places
where they drop something, with a quarter and a half, take the recipe's `dropout`.

With users for sequences, a user's sessions are one long one.

Shapes: T events · S sessions of a group · L its places · Q of them at a time · D dimension.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.batch import Batch
from training.models.item_table import SharedItems, with_one
from training.models.recurrent import read_each
from training.models.transformer import group_sessions

NUMBERS_AT_ONCE = 2**24
"""S x L x L x D: how much attention holds at a time, 64 MiB; what is more is made again for the gradient."""


class Narm(SharedItems):
    """A GRU with attention over its own earlier states."""

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.layer = nn.GRU(hidden_size, hidden_size)
        self.of_now = nn.Linear(hidden_size, hidden_size, bias=False)
        self.of_then = nn.Linear(hidden_size, hidden_size, bias=False)
        self.weigh = nn.Linear(hidden_size, 1, bias=False)
        self.wanted = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.draw_items()

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) what is wanted after each event; the last column is 1 and meets the items' bias."""
        offsets = batch.unit_offsets
        hidden_TD = read_each(self.layer, self.inputs(batch), offsets)
        purpose_TD = torch.zeros_like(hidden_TD)
        for group in group_sessions(offsets):
            heard_SLD = self.look_back(group.side_by_side(hidden_TD))
            purpose_TD = purpose_TD.index_copy(0, group.events_P, group.end_to_end(heard_SLD))
        return with_one(self.wanted(self.dropout(torch.cat([hidden_TD, purpose_TD], dim=1))))

    def look_back(self, hidden_SLD: Tensor) -> Tensor:
        """(S, L, D) the weighted sum of the states up to each place, some sessions at a time."""
        at_once = max(1, NUMBERS_AT_ONCE // hidden_SLD[0].numel() // hidden_SLD.shape[1])
        if len(hidden_SLD) <= at_once:
            return self.attend(hidden_SLD)
        return torch.cat([checkpoint(self.attend, some, use_reentrant=False) for some in hidden_SLD.split(at_once)])

    def attend(self, hidden_SLD: Tensor) -> Tensor:
        """(S, L, D) the same of some sessions; of a very long one some places at a time."""
        length = hidden_SLD.shape[1]
        now_SLD, then_SLD = self.of_now(hidden_SLD), self.of_then(hidden_SLD)
        looks_LL = torch.ones(length, length, device=hidden_SLD.device).tril()
        at_once = max(1, NUMBERS_AT_ONCE // hidden_SLD.numel())
        heard = []
        for now_SQD, looks_QL in zip(now_SLD.split(at_once, dim=1), looks_LL.split(at_once), strict=True):
            weights_SQL = self.weigh((now_SQD[:, :, None] + then_SLD[:, None]).sigmoid())[..., 0]
            heard.append((weights_SQL * looks_QL) @ hidden_SLD)
        return torch.cat(heard, dim=1)
