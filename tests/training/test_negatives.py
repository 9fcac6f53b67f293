import pytest
import torch

from training.losses import cross_entropy, sampled_softmax
from training.negatives import Negatives

COUNTS = torch.tensor([0, 1, 100, 4, 25, 0, 64])


class Table:
    """Item vectors and nothing else."""

    def __init__(self, num_codes: int) -> None:
        self.vectors_ID = torch.randn(num_codes, 3, requires_grad=True)

    def item_vectors(self, as_of: int, codes_C: torch.Tensor | None = None) -> torch.Tensor:
        return self.vectors_ID if codes_C is None else self.vectors_ID[codes_C]


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_items_are_drawn_by_count_to_the_power_of_alpha(alpha):
    torch.manual_seed(0)
    drawn = Negatives(COUNTS, 200_000, alpha, False).draw()
    found = torch.bincount(drawn, minlength=7) / len(drawn)
    shares = COUNTS.clamp(min=1).double() ** alpha
    shares[0] = 0
    expected = shares / shares.sum()
    allowed = 4 * (expected * (1 - expected) / len(drawn)).sqrt()  # four standard deviations
    assert found[0] == 0, "padding is never drawn"
    assert ((found - expected).abs() <= allowed).all()


def test_draws_come_anew_each_time_and_from_the_seed():
    negatives = Negatives(COUNTS, 50, 1, False)
    torch.manual_seed(3)
    one, other = negatives.draw(), negatives.draw()
    torch.manual_seed(3)
    assert torch.equal(negatives.draw(), one)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("in_batch", [False, True])
def test_each_rows_target_stands_in_its_column_with_its_frequency(in_batch, monkeypatch):
    torch.manual_seed(4)
    negatives, table = Negatives(COUNTS, 2, 0.5, in_batch), Table(7)
    monkeypatch.setattr(negatives, "draw", lambda: torch.tensor([6, 2]))
    states_RD, targets_R = torch.randn(3, 3), torch.tensor([4, 1, 4])
    scores, columns, frequencies = negatives(table, states_RD, targets_R, 0)
    all_scores = states_RD @ table.vectors_ID.T
    assert scores.shape == (3, 5) if in_batch else (3, 3)
    torch.testing.assert_close(scores.gather(1, columns[:, None]), all_scores.gather(1, targets_R[:, None]))
    torch.testing.assert_close(scores[:, -2:], all_scores[:, [6, 2]])
    logs = torch.log(torch.tensor([25.0, 1.0, 25.0, 64**0.5, 100**0.5]))
    expected = logs if in_batch else torch.stack([torch.stack([own / 2, *logs[3:]]) for own in logs[:3]])
    torch.testing.assert_close(frequencies, expected)


def test_sampled_softmax_with_logq_leads_where_the_full_one_does():
    """Over many draws by popularity the gradient points as that of the full softmax; without logQ it does not."""
    torch.manual_seed(5)
    counts = torch.cat([torch.zeros(1), torch.arange(1, 41) ** 2.0]).long()
    table, states_RD, targets_R = Table(41), torch.randn(8, 3), torch.randint(1, 41, (8,))
    (full,) = torch.autograd.grad(cross_entropy(states_RD, table.vectors_ID, targets_R, 64), table.vectors_ID)

    def likeness(logq: float) -> float:
        negatives = Negatives(counts, 4000, 1, False)
        loss = sampled_softmax(negatives(table, states_RD, targets_R, 0), logq)
        (gradient,) = torch.autograd.grad(loss, table.vectors_ID)
        return torch.cosine_similarity(full.flatten(), gradient.flatten(), dim=0).item()

    assert likeness(1) > 0.98
    assert likeness(0) < likeness(1) - 0.02
