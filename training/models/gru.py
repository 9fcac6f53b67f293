"""GRU over a session: gates decide how much of the state is kept, and how much of it the next candidate sees.

The network of Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016
(arXiv 1511.06939), trained as a plain sequence model: whole sessions, back-propagation through all of a session.

    r_t = sigmoid(W_r x_t + U_r h_{t-1} + b_r)              z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + c_n))   h_t = (1 - z_t) * n_t + z_t * h_{t-1}
"""

from torch import nn

from training.models.recurrent import Recurrent


class Gru(Recurrent):
    """A gated recurrent unit between a shared item table."""

    layer_type = nn.GRU
