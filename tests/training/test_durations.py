"""A target weighs by the time until the event after it, and what nobody knows weighs as the mean."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional

from features.sequences import Sequences
from training.batch import gather
from training.durations import duration_weights
from training.losses import cross_entropy
from training.models.intentrec import label_loss

MINUTE = 60_000_000


def sequences_of(minutes: list[list[float]]) -> Sequences:
    times = np.array([int(minute * MINUTE) for session in minutes for minute in session])
    offsets = np.concatenate([[0], np.cumsum([len(session) for session in minutes])])
    return Sequences(np.ones(len(times), np.int64), offsets, times, pl.Series(["v"] * len(minutes)))


def weights(minutes: list[list[float]], cap: float = 10) -> list[float]:
    sequences = sequences_of(minutes)
    batch = gather(sequences, np.arange(len(minutes)))
    return duration_weights(batch, timedelta(minutes=cap)).tolist()


def test_targets_weigh_by_the_time_that_was_spent_on_them():
    found = weights([[0, 1, 3, 99], [50, 51], [7, 8, 7]])
    # targets: 2 and 96 -> 10 minutes, then the first session's last; the second's last; one whose clock went back
    assert found == pytest.approx([2 / 4, 10 / 4, 1, 1, 0, 1])


@pytest.mark.parametrize("minutes", [[[0, 5]], [[3, 3, 3, 3]], [[0, 1], [9, 10]]], ids=["last", "same time", "lasts"])
def test_without_durations_all_weigh_alike(minutes):
    assert set(weights(minutes)) == {1.0}


def test_losses_are_means_by_weight():
    torch.manual_seed(1)
    states, vectors, targets = torch.randn(5, 4), torch.randn(300, 4), torch.tensor([1, 7, 2, 299, 5])
    heavy = torch.tensor([1.0, 0, 2, 0.5, 0])
    each = functional.cross_entropy(states @ vectors[1:].T, targets - 1, reduction="none")
    expected = (each * heavy).sum() / heavy.sum()
    torch.testing.assert_close(cross_entropy(states, vectors, targets, 1024, heavy), expected)
    many = states.repeat(400, 1), vectors, targets.repeat(400), 1, heavy.repeat(400)
    torch.testing.assert_close(cross_entropy(*many), expected, msg="in chunks")
    torch.testing.assert_close(cross_entropy(states, vectors, targets, 1024), each.mean())
    logits, labels = torch.randn(3, 4), torch.tensor([[1], [0], [3]])
    found = label_loss(logits, labels, torch.tensor([3.0, 9, 1]))
    each = functional.cross_entropy(logits[[0, 2]], labels[[0, 2], 0] - 1, reduction="none")
    torch.testing.assert_close(found, (3 * each[0] + each[1]) / 4)
