"""The balanced loss: weights by hand, plain Dice and cross-entropy where balance is off, and what it is for."""

import math

import pytest
import torch
from monai.losses import DiceCELoss

from volseg.training.lesion_loss import LesionBalancedDiceCELoss, lesion_weights


def two_lesions() -> torch.Tensor:
    label = torch.zeros(1, 1, 16, 16, 16)
    label[0, 0, 2:4, 2:4, 2:4] = 1  # 8 voxels
    label[0, 0, 7:13, 7:13, 7:13] = 1  # 216 voxels
    return label


def test_weights_follow_the_size_of_each_lesion_within_their_limits():
    weights = lesion_weights(two_lesions(), 64, exponent=2 / 3, least=0.5, most=5.0)[0, 0]
    assert float(weights[2, 2, 2]) == pytest.approx((64 / 8) ** (2 / 3))
    assert float(weights[9, 9, 9]) == 0.5  # (64 / 216) ** (2 / 3) is less
    assert float(weights[0, 0, 0]) == 1
    assert float(lesion_weights(two_lesions(), 1e6)[0, 0, 2, 2, 2]) == 5.0


def test_a_lesion_cut_by_the_crop_never_weighs_more_than_an_even_one():
    label = torch.zeros(2, 1, 16, 16, 16)
    label[0, 0, 14:16, 5:7, 5:7] = label[1, 0, 4:6, 0:2, 5:7] = 1
    weights = lesion_weights(label, 64)
    assert float(weights.max()) == 1.0


def test_slices_are_weighed_as_volumes_are():
    label = two_lesions()[..., 2:3].repeat(1, 1, 1, 1, 3)
    in_slice = lesion_weights(label[..., 1], 16, least=0.5)[0, 0]
    assert float(in_slice[2, 2]) == pytest.approx((16 / 4) ** (2 / 3))
    assert in_slice.shape == label.shape[2:4]


def test_without_balance_it_is_monais_weighted_loss():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 16, 16, 16), two_lesions().repeat(2, 1, 1, 1, 1)
    ours = LesionBalancedDiceCELoss(2.0, exponent=0.0)(logits, label)
    plain = DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=False, batch=True, weight=torch.tensor([1.0, 5.0])
    )(logits, label)
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)


def test_missing_the_small_lesion_costs_more_than_without_balance():
    label = two_lesions()
    seen = torch.where(label > 0, 4.0, -4.0)
    missed = seen.clone()
    missed[0, 0, 2:4, 2:4, 2:4] = -4.0

    def price(exponent: float) -> float:
        loss = LesionBalancedDiceCELoss(2.0, even_mm=8.0, exponent=exponent)
        good, bad = (float(loss(torch.cat([-x, x], dim=1) / 2, label)) for x in (seen, missed))
        return bad - good

    assert price(2 / 3) > 1.5 * price(0.0)


def test_no_lesion_and_bfloat16_are_finite_and_give_gradients():
    logits = torch.randn(1, 2, 16, 16, 16, dtype=torch.bfloat16, requires_grad=True)
    loss = LesionBalancedDiceCELoss(2.0)(logits, torch.zeros(1, 1, 16, 16, 16))
    loss.backward()
    assert math.isfinite(loss.item()) and bool(logits.grad.isfinite().all())
