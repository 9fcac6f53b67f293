"""GRU4Rec as its authors publish it (hidasib/GRU4Rec_PyTorch_Official, shared item table, one layer).

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016 (arXiv 1511.06939), with the
losses and negatives of Hidasi and Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based
Recommendations", CIKM 2018 (arXiv 1706.03847).

The network is that of `gru`. What makes it GRU4Rec is how it learns, which its recipe says: sessions side by side in
order of time, one event of each a step (training/session_parallel.py); the state is carried into the next step, but no
gradient is; targets stand against each other and against drawn items that the whole step shares
(training/negatives.py); cross-entropy with logQ, or BPR-max (training/losses.py); Adagrad that moves the step's rows
only (training/adagrad.py).

Shapes: B sessions of a step · D dimension.
"""

import torch
from torch import Tensor, nn

from features.vocabulary import PADDING
from training.models.recurrent import Recurrent


class Gru4Rec(Recurrent):
    """A GRU that can also be stepped through many sessions at once."""

    layer_type = nn.GRU

    def __init__(self, num_codes: int, hidden_size: int, dropout: float) -> None:
        super().__init__(num_codes, hidden_size, dropout)
        draw_evenly(self.items.weight, num_codes - 1 + hidden_size)
        for weights in (self.layer.weight_ih_l0, self.layer.weight_hh_l0):
            draw_evenly(weights, 2 * hidden_size)
        for bias in (self.layer.bias_ih_l0, self.layer.bias_hh_l0):
            nn.init.zeros_(bias)
        with torch.no_grad():
            self.items.weight[PADDING] = 0

    def step(self, item_codes_B: Tensor, carry_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D + 1) the states after one more event of each session, and (B, D) what the next step carries on."""
        states_BD, carry_BD = self.advance(item_codes_B, carry_BD)
        return states_BD, carry_BD.detach()


def draw_evenly(weights: Tensor, fan: int) -> None:
    """Glorot's uniform distribution, each gate of the layer a matrix of its own."""
    limit = (6 / fan) ** 0.5
    nn.init.uniform_(weights, -limit, limit)
