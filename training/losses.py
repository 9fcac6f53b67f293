"""Losses over states and item vectors, apart from the models; each is a mean over rows.

Shapes: R states that have a target · D dimension · I item codes · C columns, of which one is the row's target.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from features.vocabulary import PADDING
from training.negatives import Candidates

BYTES_A_SCORE = 12  # the score, its softmax and its gradient, float32 each


def cross_entropy(
    states_RD: Tensor, vectors_ID: Tensor, targets_R: Tensor, memory_mb: int, weights_R: Tensor | None = None
) -> Tensor:
    """() -log softmax over all items, padding left out; a weighted mean where there are weights.

    Where the scores need more than `memory_mb` MiB, they are made in chunks of items and made again for the gradient:
    the same loss in bounded memory.
    """
    items_ID, targets_R = vectors_ID[PADDING + 1 :], targets_R - 1
    chunk = max(1, memory_mb * 2**20 // (BYTES_A_SCORE * max(1, len(states_RD))))
    if chunk >= len(items_ID):
        scores_RI = states_RD @ items_ID.T
        if weights_R is None:  # in one pass
            return F.cross_entropy(scores_RI, targets_R)
        return weighted_mean(F.cross_entropy(scores_RI, targets_R, reduction="none"), weights_R)
    sums = [checkpoint(log_sum_exp, states_RD, part, use_reentrant=False) for part in items_ID.split(chunk)]
    scores_R = (states_RD * items_ID[targets_R]).sum(1)
    return weighted_mean(torch.stack(sums).logsumexp(0) - scores_R, weights_R)


def weighted_mean(losses_R: Tensor, weights_R: Tensor | None) -> Tensor:
    """() the mean of rows, each as heavy as its weight."""
    return losses_R.mean() if weights_R is None else (losses_R * weights_R).sum() / weights_R.sum().clamp(min=1e-9)


def log_sum_exp(states_RD: Tensor, items_CD: Tensor) -> Tensor:
    """(R) log of the sum of exp(score) over some items."""
    return (states_RD @ items_CD.T).logsumexp(1)


def sampled_softmax(candidates: Candidates, logq: float) -> Tensor:
    """() -log softmax over the candidates; `logq` 1 takes out how often each item is drawn, 0 leaves it in.

    Bengio and Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic language model",
    IEEE Transactions on Neural Networks 19, 2008.
    """
    return F.cross_entropy(candidates.scores_RC - logq * candidates.log_frequencies, candidates.columns_R)


def bpr_max(candidates: Candidates, elu: float, regularisation: float) -> Tensor:
    """() BPR-max: the target against the negatives, each weighed by its softmax among the negatives.

    Hidasi and Karatzoglou, "Recurrent Neural Networks with Top-k Gains", CIKM 2018 (arXiv 1706.03847):
    -log sum_j s_j sigmoid(r_i - r_j) + regularisation * sum_j s_j r_j^2, after ELU on the scores (0: none).
    """
    scores_RC = F.elu(candidates.scores_RC, elu) if elu else candidates.scores_RC
    columns_R1 = candidates.columns_R[:, None]
    is_target_RC = torch.zeros_like(scores_RC, dtype=torch.bool).scatter(1, columns_R1, True)
    log_weights_RC = scores_RC.masked_fill(is_target_RC, -torch.inf).log_softmax(1)
    log_wins_RC = F.logsigmoid(scores_RC.gather(1, columns_R1) - scores_RC)
    penalty_R = (log_weights_RC.exp() * scores_RC**2).sum(1)
    return (regularisation * penalty_R - (log_weights_RC + log_wins_RC).logsumexp(1)).mean()


def gbce(candidates: Candidates, num_items: int, calibration: float) -> Tensor:
    """() generalised binary cross-entropy, which mends the overconfidence of sampled negatives.

    Petrov and Macdonald, "gSASRec", RecSys 2023 (arXiv 2308.07192): the target's likelihood to the power of
    beta = a (t (1 - 1/a) + 1/a), a = negatives drawn / items to draw from, t = `calibration` (0: plain, 1: full).
    """
    scores_RC, columns_R1 = candidates.scores_RC, candidates.columns_R[:, None]
    num_negatives = scores_RC.shape[1] - 1
    beta = calibration * (min(1.0, num_negatives / max(1, num_items - 1)) - 1) + 1
    losses_RC = F.softplus(scores_RC).scatter(1, columns_R1, beta * F.softplus(-scores_RC.gather(1, columns_R1)))
    return losses_RC.mean()
