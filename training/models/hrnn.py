"""HRNN: a second recurrence from session to session of a user tells the session's network whom it serves.

Quadrana, Karatzoglou, Hidasi and Cremonesi, "Personalizing Session-based Recommendations with Hierarchical Recurrent
Neural Networks", RecSys 2017 (arXiv 1706.04148). For session m of a user with events n = 1, 2, …:

    s_{m,n}   = GRU_ses(E[i_{m,n}], s_{m,n-1})          `propagate: all`: GRU_ses([E[i_{m,n}]; c_{m-1}], s_{m,n-1})
    c_m       = GRU_usr(s_m, c_{m-1})                    s_m the last state of session m, c_0 = 0
    s_{m+1,0} = tanh(W_init c_m + b_init)                s_{1,0} = 0
    score(i)  = s_{m,n} . E[i] + b_i                     one item table for input and output
                (s_{m,n} + V c_{m-1}) . E[i] + b_i       `user_to_output`, an option of the authors' code

Without earlier sessions s_{1,0} and c_0 are 0, so a user without history or id gets exactly what `gru` with the same
weights gives. A session's states depend on earlier sessions through c alone.

How far a gradient reaches: within a session through all of it. From session to session `backprop_sessions` = K says: at
every K-th session start of a user, s_m and c_{m-1} go into GRU_usr without gradient. K = 1 is as published: GRU_usr and
W_init learn from the session that they open, and nothing reaches the events of earlier ones. K = 2 lets every second
session reach the one before it, and so on.

Where this differs from the authors' code: their gradients reach one event, their user term with `all` enters the gates
only (here the candidate, too, as the paper writes it), their item tables for input and output differ, and they drop
every user who is still open when no further one begins; here every target of every user is trained.

`user_dropout` blanks part of s_m on its way into GRU_usr and of c on its way out. It is there because c tells users
apart: without it the network learns by heart what each user of the window did next, and serves users with a history
worse than a session model does (docs/benchmarks.md).

V begins as 0. What a user had in earlier sessions and comes back to is then one product, V c with the item table, where
the way through s_{m+1,0} has to survive every event of the session.

Round m runs the m-th session of all users that have one, whole sessions packed as in `gru`.

Shapes: T events · S sessions · U users · R users of a round · P events of a round · B sessions side by side ·
D dimension.
"""

from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from features.intents import Definitions
from training.batch import Batch
from training.models.gru4rec import Gru4Rec
from training.models.item_table import with_one
from training.models.recurrent import step_order
from training.recipes import SequenceRecipe


class Hrnn(Gru4Rec):
    """A GRU over events under a GRU over sessions; drawn as GRU4Rec is."""

    def __init__(
        self,
        num_codes: int,
        hidden_size: int,
        dropout: float,
        propagate: Literal["init", "all"] = "init",
        backprop_sessions: int = 1,
        user_dropout: float = 0,
        user_to_output: bool = False,
    ) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        if propagate == "all":
            self.layer = nn.GRU(2 * hidden_size, hidden_size)
        self.propagate, self.backprop_sessions = propagate, backprop_sessions
        self.user_layer = nn.GRUCell(hidden_size, hidden_size)
        self.start = nn.Linear(hidden_size, hidden_size)
        self.user_dropout = nn.Dropout(user_dropout)
        self.wanted = nn.Linear(hidden_size, hidden_size, bias=False) if user_to_output else None
        if self.wanted is not None:
            nn.init.zeros_(self.wanted.weight)

    @classmethod
    def of_recipe(cls, recipe: SequenceRecipe, num_codes: int, definitions: Definitions | None = None) -> Self:
        """With the recipe's way of propagation."""
        sizes = (num_codes, recipe.hidden_size, recipe.dropout)
        return cls(*sizes, recipe.propagate, recipe.backprop_sessions, recipe.user_dropout, recipe.user_to_output)

    def states(self, batch: Batch) -> Tensor:
        """(T, D + 1) the state after each event; without `user_offsets` each session is a user's first."""
        inputs_TD = self.inputs(batch)
        rounds = rounds_of(batch)
        first = rounds[0].num_users if rounds else 0
        last_RD = user_RD = inputs_TD.new_zeros(first, inputs_TD.shape[1])
        start_RD, states = last_RD, []
        for number, sessions in enumerate(rounds):
            if number:
                last_RD, user_RD = last_RD[: sessions.num_users], user_RD[: sessions.num_users]
                if number % self.backprop_sessions == 0:
                    last_RD, user_RD = last_RD.detach(), user_RD.detach()
                user_RD = self.user_layer(self.user_dropout(last_RD), user_RD)
                start_RD = self.start(self.user_dropout(user_RD)).tanh()
            inputs_PD = inputs_TD[sessions.places_P]
            if self.propagate == "all":
                inputs_PD = torch.cat([inputs_PD, self.user_dropout(user_RD)[sessions.user_P]], dim=1)
            packed, end_1RD = self.layer(PackedSequence(inputs_PD, sessions.sizes), start_RD[sessions.order_R][None])
            last_RD = torch.empty_like(end_1RD[0]).index_copy(0, sessions.order_R, end_1RD[0])
            states.append(self.with_wanted(packed.data, user_RD, sessions.user_P))
        if not rounds:
            return with_one(inputs_TD)
        places_T = torch.cat([sessions.places_P for sessions in rounds])
        return with_one(torch.empty_like(inputs_TD).index_copy(0, places_T, torch.cat(states)))

    def new_carry(self, num_sessions: int) -> Tensor:
        """(B, 2 D + 1) the session's state, the user's, and whether the user has an event."""
        self.learnt_only()
        return self.items.weight.new_zeros(num_sessions, 2 * self.layer.hidden_size + 1)

    def advance(
        self, item_codes_B: Tensor, carry_BC: Tensor | None = None, is_new_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, D + 1) the states after one more event, and (B, 2 D + 1) what to carry on.

        Where `is_new_B` is true, the event begins a session: the one before it goes into the user's state.
        """
        self.items_only()
        carry_BC = self.new_carry(len(item_codes_B)) if carry_BC is None else carry_BC
        dimension = self.layer.hidden_size
        session_BD, user_BD, begun_B1 = carry_BC.split([dimension, dimension, 1], dim=1)
        if is_new_B is not None:
            turns_B1 = is_new_B[:, None] & (begun_B1 > 0)
            user_BD = torch.where(turns_B1, self.user_layer(session_BD, user_BD), user_BD)
            session_BD = torch.where(turns_B1, self.start(user_BD).tanh(), session_BD)
        inputs_BD = self.dropout(self.rows(item_codes_B))
        if self.propagate == "all":
            inputs_BD = torch.cat([inputs_BD, user_BD], dim=1)
        states_1BD, _ = self.layer(inputs_BD[None], session_BD[None].contiguous())
        carry_BC = torch.cat([states_1BD[0], user_BD, torch.ones_like(begun_B1)], dim=1)
        return with_one(self.with_wanted(states_1BD[0], user_BD)), carry_BC

    def with_wanted(self, states_PD: Tensor, user_RD: Tensor, user_P: Tensor | None = None) -> Tensor:
        """(P, D) states with what their users' states add to the scores; without `user_P` one user each."""
        if self.wanted is None:
            return states_PD
        wanted_RD: Tensor = self.wanted(self.user_dropout(user_RD))
        return states_PD + (wanted_RD if user_P is None else wanted_RD[user_P])


class Round(NamedTuple):
    """The m-th session of all users that have one, of users in order of their number of sessions."""

    places_P: Tensor
    """Places in T of its events, in the order that a recurrent layer takes them."""
    sizes: Tensor
    """Sessions of each step."""
    order_R: Tensor
    """The users, longest session first."""
    user_P: Tensor
    """The user of each event, in the order of `places_P`."""

    @property
    def num_users(self) -> int:
        """R."""
        return len(self.order_R)


def rounds_of(batch: Batch) -> list[Round]:
    """The rounds of a batch; users of earlier rounds who have no further session fall away at the end."""
    is_there_S = batch.lengths > 0
    starts_S, lengths_S = batch.offsets[:-1][is_there_S], batch.lengths[is_there_S]
    first_U, num_sessions_U = torch.arange(len(starts_S), device=starts_S.device), torch.ones_like(starts_S)
    if batch.user_offsets is not None:
        num_before_S = torch.cat([is_there_S.new_zeros(1), is_there_S]).cumsum(0)
        offsets = num_before_S[batch.user_offsets]
        first_U, num_sessions_U = offsets[:-1], offsets.diff()
    num_sessions_U, users_U = num_sessions_U.sort(descending=True, stable=True)
    first_U = first_U[users_U]
    num_rounds = int(num_sessions_U[:1].sum())
    steps_M = torch.arange(num_rounds, device=starts_S.device)
    num_users_M = (num_sessions_U[None] > steps_M[:, None]).sum(1).tolist()
    found = []
    for number, num_users in enumerate(num_users_M):
        sessions_R = first_U[:num_users] + number
        places_P, sizes, order_R, user_P = step_order(starts_S[sessions_R], lengths_S[sessions_R])
        found.append(Round(places_P, sizes, order_R, user_P))
    return found
