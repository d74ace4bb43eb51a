"""Soft losses against torch's own, and where torch's are not defined."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import as_targets, one_hot, soft_binary_cross_entropy, soft_cross_entropy
from rlmix.classifier.mixing.targets import smooth

LOGITS = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
TARGETS = torch.rand(20, 5, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
WEIGHTS = torch.tensor([0.1, 1.0, 2.0, 0.5, 3.0])


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_both_are_torchs(weight: torch.Tensor | None) -> None:
    expected = cross_entropy(LOGITS, TARGETS, weight=weight, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(LOGITS, TARGETS, weight), expected)
    expected = binary_cross_entropy_with_logits(LOGITS, TARGETS, weight=weight, reduction="none").mean(dim=1)
    torch.testing.assert_close(soft_binary_cross_entropy(LOGITS, TARGETS, weight), expected)


def test_a_weighted_soft_loss_is_the_weighted_sum_of_hard_ones() -> None:
    hard = torch.stack([soft_cross_entropy(LOGITS, one_hot(torch.full((20,), k), 5), WEIGHTS) for k in range(5)], dim=1)
    torch.testing.assert_close(soft_cross_entropy(LOGITS, TARGETS, WEIGHTS), (hard * TARGETS).sum(dim=1))


@pytest.mark.parametrize("loss", [soft_cross_entropy, soft_binary_cross_entropy])
def test_a_masked_class_adds_nothing_and_has_no_gradient(loss: object) -> None:
    assert callable(loss)
    logits = torch.tensor([[1.0, -torch.inf, 0.5]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.7, 0.0, 0.3]])).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    without = torch.tensor([[1.0, 0.5]], requires_grad=True)
    expected = loss(without, torch.tensor([[0.7, 0.3]])).sum()
    assert value.isfinite() and gradient.isfinite().all() and gradient[0, 1] == 0
    factor = 3 / 2 if loss is soft_binary_cross_entropy else 1  # a mean over one class more
    assert (value * factor).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [soft_cross_entropy, soft_binary_cross_entropy])
def test_half_precision_is_computed_in_float32(loss: object, dtype: torch.dtype) -> None:
    assert callable(loss)
    logits = torch.tensor([[6e4, -6e4, 0.0]]).to(dtype)
    found = loss(logits, torch.tensor([[0.5, 0.5, 0.0]]))
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(found, loss(logits.float(), torch.tensor([[0.5, 0.5, 0.0]])))


def test_one_output_has_no_softmax_but_a_binary_loss_and_smoothing_to_one_half() -> None:
    with pytest.raises(InputError, match="soft_binary_cross_entropy"):
        soft_cross_entropy(LOGITS[:, :1], TARGETS[:, :1])
    targets = as_targets(torch.tensor([0, 1]), 1)
    assert targets.tolist() == [[0.0], [1.0]]
    torch.testing.assert_close(smooth(targets, 0.2), torch.tensor([[0.1], [0.9]]))
