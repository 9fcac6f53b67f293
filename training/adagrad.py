"""Adagrad with momentum, as GRU4Rec's authors use it: of an item table only the rows of a step are moved.

    a += g^2        m = momentum * m - learning_rate * g / sqrt(a + eps)        w += m

`a` and `m` of a row stand still while the row is not touched, which torch's own optimisers do not offer together.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

EPSILON = 1e-6


class MomentumAdagrad(Optimizer):
    """Weights with a sparse gradient (`nn.Embedding(sparse=True)`) move by rows, all others as a whole.

    `weights` may come in groups that have a rate `lr` of their own."""

    def __init__(
        self, weights: Iterable[nn.Parameter] | list[dict[str, Any]], learning_rate: float, momentum: float
    ) -> None:
        super().__init__(weights, {"lr": learning_rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move all weights that have a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self.move(weights, weights.grad, group["lr"], group["momentum"])
        return loss

    def move(self, weights: Tensor, gradient: Tensor, rate: float, momentum: float) -> None:
        """One step of one tensor."""
        state = self.state[weights]
        names = ("squares", "moves") if momentum else ("squares",)
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(weights)
        if not gradient.is_sparse:
            weights.add_(advance([state[name] for name in names], gradient, rate, momentum))
            return
        gradient = gradient.coalesce()  # a row that is used twice moves once, by the sum
        rows, gradient = gradient.indices()[0], gradient.values()
        past = [state[name].index_select(0, rows) for name in names]
        weights.index_add_(0, rows, advance(past, gradient, rate, momentum))
        for name, now in zip(names, past, strict=True):
            state[name].index_copy_(0, rows, now)


def advance(past: list[Tensor], gradient: Tensor, rate: float, momentum: float) -> Tensor:
    """Take a gradient into the sum of squares and, if there is momentum, into the running move; return the move."""
    squares = past[0].addcmul_(gradient, gradient)
    scale = squares.add(EPSILON).sqrt_()
    if momentum:
        return past[1].mul_(momentum).addcdiv_(gradient, scale, value=-rate)
    return gradient.div(scale).mul_(-rate)
