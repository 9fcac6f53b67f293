"""What the recurrent models share: one layer that reads a session, between an item table that is input and output.

    x_t = E[item_t]        h_t = layer(x_t, h_{t-1})        score(i) = h_t . E[i] + b_i

Whole sessions, back-propagation through all of a session. A model names its layer; everything else is here.

Shapes: T events · S sessions · B sessions side by side · C width of what they carry · D dimension · I item codes.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from training.batch import Batch
from training.models.item_table import SharedItems, with_one


class Recurrent(SharedItems):
    """One recurrent layer between a shared item table."""

    layer_type: ClassVar[type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]]

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        self.layer = self.layer_type(hidden_size, hidden_size)
        self.draw_items()

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) the layer's state after each event; the last column is 1 and meets the items' bias."""
        return with_one(read_each(self.layer, self.inputs(batch), batch.offsets))

    def new_carry(self, num_sessions: int) -> Tensor:
        """(B, D), of an LSTM (B, 2 D), zeros: what a session without an event carries on."""
        self.learnt_only()
        width = self.layer.hidden_size * (2 if isinstance(self.layer, nn.LSTM) else 1)
        return self.items.weight.new_zeros(num_sessions, width)

    def advance(
        self, item_codes_B: Tensor, carry_BC: Tensor | None = None, is_new_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, D + 1) the states after one more event of each session, and what the next step carries on."""
        self.items_only()
        carry_BC = self.new_carry(len(item_codes_B)) if carry_BC is None else carry_BC
        if is_new_B is not None:
            carry_BC = carry_BC.masked_fill(is_new_B[:, None], 0)
        inputs_1BD = self.dropout(self.rows(item_codes_B))[None]
        parts = [part[None].contiguous() for part in carry_BC.split(self.layer.hidden_size, dim=1)]
        states_1BD, last = self.layer(inputs_1BD, tuple(parts) if len(parts) > 1 else parts[0])
        carry_BC = torch.cat([part[0] for part in last], dim=1) if len(parts) > 1 else last[0]
        return with_one(states_1BD[0]), carry_BC


def read_each(layer: nn.RNN | nn.GRU | nn.LSTM, inputs_TD: Tensor, offsets: Tensor) -> Tensor:
    """(T, D) the layer's state after each event of sessions, or of anything else that `offsets` tell apart."""
    steps = step_order(offsets[:-1], offsets.diff())
    packed, _ = layer(PackedSequence(inputs_TD[steps.places_T], steps.sizes))
    return torch.empty_like(packed.data).index_copy(0, steps.places_T, packed.data)


class StepOrder(NamedTuple):
    """Events in the order a recurrent layer takes them: all first events, all second events, …"""

    places_T: Tensor
    """The events' places, longest session first in each step."""
    sizes: Tensor
    """Sessions of each step; on the CPU."""
    order_S: Tensor
    """Sessions, longest first."""
    session_T: Tensor
    """The session of each event, in the order of `places_T`."""


def step_order(starts_S: Tensor, lengths_S: Tensor) -> StepOrder:
    """The step order of sessions that begin at these places and have so many events."""
    order_S = lengths_S.argsort(descending=True, stable=True)
    rank_S = order_S.argsort()
    first_S = lengths_S.cumsum(0) - lengths_S
    session_T = torch.arange(len(lengths_S), device=lengths_S.device).repeat_interleave(lengths_S)
    step_T = torch.arange(len(session_T), device=lengths_S.device) - first_S[session_T]
    in_order_T = (step_T * (len(lengths_S) + 1) + rank_S[session_T]).argsort()
    session_T, sizes = session_T[in_order_T], torch.bincount(step_T).cpu()
    return StepOrder(starts_S[session_T] + step_T[in_order_T], sizes, order_S, session_T)
