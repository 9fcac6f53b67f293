"""Losses over states and item vectors, apart from the models.

Shapes: R states that have a target · D dimension · I item codes.
"""

from torch import Tensor
from torch.nn import functional as F

from features.vocabulary import PADDING


def cross_entropy(states_RD: Tensor, vectors_ID: Tensor, targets_R: Tensor) -> Tensor:
    """() mean -log softmax over all items, padding left out."""
    scores_RI = states_RD @ vectors_ID[PADDING + 1 :].T
    return F.cross_entropy(scores_RI, targets_R - 1)
