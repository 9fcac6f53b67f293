"""LSTM over a session: beside its state, a cell that gates write to, forget, and read.

Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997; the forget gate is that of
Gers et al., 2000.

    i_t, f_t, o_t = sigmoid(W x_t + U h_{t-1} + b), each with weights of its own
    g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)       c_t = f_t * c_{t-1} + i_t * g_t       h_t = o_t * tanh(c_t)
"""

from torch import nn

from training.models.recurrent import Recurrent


class Lstm(Recurrent):
    """Long short-term memory between a shared item table."""

    layer_type = nn.LSTM
