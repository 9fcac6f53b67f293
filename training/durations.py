"""How much a target weighs in the losses by the time that was spent on it (IntentRec's d_k, arXiv 2408.05353).

Nobody says how long an event took: it is the time to the next one of its session, at most a cap, beyond which nobody
is known to have looked on. What follows a session's last event is unknown; it weighs as the mean of the others.

Shapes: T events · R targets.
"""

from datetime import timedelta

import torch
from torch import Tensor

from training.batch import Batch


def duration_weights(batch: Batch, cap: timedelta) -> Tensor:
    """(R) proportional to the targets' durations; their mean is 1, also where no duration is known."""
    longest = cap // timedelta(microseconds=1)
    lasted_T = (batch.occurred_at.roll(-1) - batch.occurred_at).clamp(min=0, max=longest).float()
    is_last_T = torch.zeros_like(batch.target_mask)
    is_last_T[batch.offsets[1:][batch.lengths > 0] - 1] = True
    lasted_R, is_known_R = (column_T.roll(-1)[batch.target_mask] for column_T in (lasted_T, ~is_last_T))
    mean = lasted_R[is_known_R].mean() if is_known_R.any() else lasted_R.new_zeros(())
    if mean <= 0:
        return torch.ones_like(lasted_R)
    return torch.where(is_known_R, lasted_R / mean, torch.ones_like(lasted_R))
