import pytest
import torch
from torch.nn import functional as F

from training.losses import bpr_max, cross_entropy, gbce, sampled_softmax
from training.negatives import Candidates


def test_cross_entropy_is_the_plain_softmax_without_padding():
    torch.manual_seed(0)
    states_RD, vectors_ID = torch.randn(5, 4), torch.randn(7, 4)
    targets_R = torch.tensor([1, 6, 3, 3, 2])
    expected = 0.0
    for state, target in zip(states_RD, targets_R, strict=True):
        scores = [float(torch.exp(state @ vector)) for vector in vectors_ID]
        expected -= torch.log(torch.tensor(scores[target] / sum(scores[1:]))).item() / 5
    assert cross_entropy(states_RD, vectors_ID, targets_R, 1024).item() == pytest.approx(expected, rel=1e-5)


def test_chunks_of_items_change_neither_the_loss_nor_its_gradients():
    torch.manual_seed(1)
    states_RD, vectors_ID = torch.randn(400, 6, requires_grad=True), torch.randn(999, 6, requires_grad=True)
    targets_R = torch.randint(1, 999, (400,))
    whole = cross_entropy(states_RD, vectors_ID, targets_R, 1024)
    expected = torch.autograd.grad(whole, [states_RD, vectors_ID])
    chunked = cross_entropy(states_RD, vectors_ID, targets_R, 1)  # 1 MiB holds 218 items of 999
    torch.testing.assert_close(chunked, whole)
    for ours, theirs in zip(torch.autograd.grad(chunked, [states_RD, vectors_ID]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_no_scores_of_more_than_a_chunk_are_ever_made(monkeypatch):
    sizes = []
    plain = torch.Tensor.logsumexp
    monkeypatch.setattr(
        torch.Tensor, "logsumexp", lambda scores, dim: sizes.append(scores.numel()) or plain(scores, dim)
    )
    cross_entropy(torch.randn(400, 6), torch.randn(999, 6), torch.ones(400, dtype=torch.long), 1)
    assert max(sizes) <= 2**20 / 12
    assert len(sizes) == 5 + 1, "five chunks and their sum"


@pytest.fixture
def candidates():
    """Three rows of five columns; the targets on the diagonal."""
    torch.manual_seed(2)
    return Candidates(torch.randn(3, 5), torch.arange(3), torch.rand(5))


def test_sampled_softmax_takes_out_how_often_items_are_drawn(candidates):
    scores, _, frequencies = candidates
    for logq in (0.0, 0.5, 1.0):
        odds = torch.exp(scores) / torch.exp(logq * frequencies)
        expected = -(odds.diag() / odds.sum(1)).log().mean()
        torch.testing.assert_close(sampled_softmax(candidates, logq), expected)


@pytest.mark.parametrize("elu", [0, 0.5])
def test_bpr_max_is_the_papers_sum(candidates, elu):
    total = 0.0
    for row, raw in enumerate(candidates.scores_RC):
        scores = F.elu(raw, elu) if elu else raw
        others = [column for column in range(5) if column != row]
        weights = scores[others].softmax(0)
        wins = (weights * torch.sigmoid(scores[row] - scores[others])).sum()
        total += float(-wins.log() + 1.95 * (weights * scores[others] ** 2).sum()) / 3
    assert bpr_max(candidates, elu, 1.95).item() == pytest.approx(total, rel=1e-5)


def test_bpr_max_of_hopeless_scores_stays_finite():
    scores = torch.tensor([[-200.0, 200.0, 100.0]], requires_grad=True)
    loss = bpr_max(Candidates(scores, torch.tensor([0]), torch.zeros(3)), 0, 1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_gbce_is_the_papers_formula(candidates):
    scores = candidates.scores_RC
    for calibration in (0.0, 0.75, 1.0):
        rate = 4 / (101 - 1)
        beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
        positive = (torch.sigmoid(scores.diag()) ** beta).log()
        negative = torch.log(1 - torch.sigmoid(scores)).sum(1) - torch.log(1 - torch.sigmoid(scores.diag()))
        torch.testing.assert_close(gbce(candidates, 101, calibration), (-(positive + negative) / 5).mean())
