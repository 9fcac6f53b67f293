"""Plain recurrent network over a session: the simplest model with an order, and the yardstick of the gated ones.

Elman, "Finding Structure in Time", Cognitive Science 14, 1990, with tanh.

    h_t = tanh(W x_t + U h_{t-1} + b)
"""

from torch import nn

from training.models.recurrent import Recurrent


class Rnn(Recurrent):
    """A tanh layer between a shared item table."""

    layer_type = nn.RNN
