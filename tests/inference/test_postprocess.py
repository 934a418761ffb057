"""From logits to numbered lesions."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from volseg.inference.postprocess import LesionInstancesd, LesionProbabilityd


def _tensor(array: np.ndarray, spacing=(1.0, 1.0, 2.0)) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(array), affine=affine)


def test_probability_is_the_softmax_of_the_lesion_class():
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    out = LesionProbabilityd("pred")({"pred": _tensor(logits)})
    assert "pred" not in out
    expected = torch.softmax(torch.from_numpy(logits), 0)[1:2]
    assert torch.allclose(out["probability"].as_tensor(), expected, atol=1e-6)


def test_probability_of_three_classes_is_a_softmax_too():
    logits = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    out = LesionProbabilityd("pred")({"pred": _tensor(logits)})["probability"]
    assert torch.allclose(out.as_tensor(), torch.softmax(torch.from_numpy(logits), 0)[1:2], atol=1e-6)


def test_heads_that_do_not_exclude_each_other_get_a_sigmoid_each():
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    out = LesionProbabilityd("pred", sigmoid=True)({"pred": _tensor(logits)})["probability"]
    assert torch.allclose(out.as_tensor(), torch.sigmoid(torch.from_numpy(logits[1:])), atol=1e-6)


def test_far_from_bone_there_is_no_metastasis():
    logits = np.stack([np.zeros((20, 3, 20)), np.full((20, 3, 20), 9.0)]).astype(np.float32)
    bone = np.zeros((1, 20, 3, 20), np.uint8)
    bone[0, 2, 1, 2] = 1
    out = LesionProbabilityd("pred", bone_key="bone", margin_mm=4)({"pred": _tensor(logits), "bone": _tensor(bone)})
    probable = out["probability"].numpy()[0] > 0.5
    # 4 mm are 4 voxels along x and 2 along z.
    assert probable[:7].any() and not probable[7:].any()
    assert probable[:, :, :5].any() and not probable[:, :, 5:].any()


def test_lesions_are_numbered_from_the_largest_and_small_ones_dropped():
    probability = np.zeros((1, 20, 20, 20), np.float32)
    probability[0, 1:4, 1:4, 1:4] = 0.9  # 27 voxels of 2 mm3
    probability[0, 8:14, 8:14, 8:14] = 0.8
    probability[0, 18, 18, 18] = 1.0  # 2 mm3: too small
    out = LesionInstancesd("probability", mask_key="pred", min_volume_mm3=50)({"probability": _tensor(probability)})
    mask = out["pred"].numpy()[0]
    assert sorted(np.unique(mask)) == [0, 1, 2]
    assert mask[10, 10, 10] == 1 and mask[2, 2, 2] == 2
    assert out["probability"].max() == 1.0


def test_a_faint_lesion_without_a_seed_is_dropped():
    probability = np.zeros((1, 20, 20, 20), np.float32)
    probability[0, 1:6, 1:6, 1:6] = 0.55
    strict = LesionInstancesd(seed_threshold=0.8, min_volume_mm3=1)({"probability": _tensor(probability)})
    lenient = LesionInstancesd(min_volume_mm3=1)({"probability": _tensor(probability)})
    assert strict["pred"].max() == 0
    assert lenient["pred"].max() == 1


def test_lesions_that_grew_together_are_parted_where_it_is_asked_for():
    probability = np.zeros((1, 20, 20, 20), np.float32)
    probability[0, 1:19, 5:9, 5:9] = 0.55
    probability[0, 1:8, 5:9, 5:9] = probability[0, 12:19, 5:9, 5:9] = 0.9
    one = LesionInstancesd()({"probability": _tensor(probability)})
    two = LesionInstancesd(part_at=[0.7])({"probability": _tensor(probability)})
    assert one["pred"].max() == 1 and two["pred"].max() == 2
    assert torch.equal(one["pred"].as_tensor() > 0, two["pred"].as_tensor() > 0)


def test_an_empty_probability_gives_an_empty_mask():
    out = LesionInstancesd()({"probability": _tensor(np.zeros((1, 5, 5, 5), np.float32))})
    assert out["pred"].max() == 0
