"""A small detector learns four phantoms by heart: every lesion found, none invented, the masks right."""

import numpy as np
import pytest
import torch

from volseg.detection import AnchorGrid, MaskRCNN3D, MaskRCNNNetwork, targets_from_instances
from volseg.evaluation.detection_metric import DetectionSummary
from volseg.inference.detect import DetectionInferer
from volseg.inference.detections_to_source import OwnedVoxelsd
from volseg.training.muon import Muon

SIZE, STEPS, RATE = 32, 150, 0.01


def phantom(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with two ellipsoids of half axes 3 to 6 voxels, each dark or bright, and their instance map."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.15, (SIZE,) * 3).astype(np.float32)
    labels = np.zeros(image.shape, np.int32)
    places = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), axis=-1)
    while labels.max() < 2:
        half, center = rng.uniform(3, 6, 3), rng.uniform(7, SIZE - 7, 3)
        if labels[(((places - center) / (half + 2)) ** 2).sum(axis=-1) < 1].any():
            continue
        inside = (((places - center) / half) ** 2).sum(axis=-1) < 1
        labels[inside] = labels.max() + 1
        image[inside] += rng.choice([-1.0, 1.0])
    return torch.from_numpy(image)[None], torch.from_numpy(labels)[None]


@pytest.mark.timeout(900)  # half a minute on two free cores, far more on busy ones
def test_four_phantoms_are_learnt_by_heart():
    torch.manual_seed(0)
    phantoms = [phantom(seed) for seed in range(4)]
    network = MaskRCNNNetwork(
        depths=(1, 1, 1, 1),
        dims=(16, 32, 32, 32),
        kernel_size=3,
        first_level=0,
        fpn_channels=24,
        head_channels=24,
        mask_channels=16,
        semantic_channels=16,
    )
    detector = MaskRCNN3D(network, AnchorGrid([[6, 9], [12, 18], [24, 36], [48, 72]], 1.0))
    optimizer = Muon(detector, RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [RATE, RATE / 2], STEPS, cycle_momentum=False)
    for step in range(STEPS):
        image, labels = phantoms[step % 4]
        loss = torch.stack(list(detector(image[None], [targets_from_instances(labels)]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    detector.eval()
    metric = DetectionSummary(operating_score=0.5)
    inferer = DetectionInferer(SIZE, score=0.05)
    for image, labels in phantoms:
        found = inferer(image[None], detector)[0]
        scores = [float(found[2][found[1] == i].amax()) if (found[1] == i).any() else 0.0 for i in range(1, 9)]
        metric.update(([OwnedVoxelsd("pred")({"pred": found})["pred"]], [scores], [labels]))
    found = metric.compute()
    assert found["AP_10"] == 1.0
    assert found["false_positives_per_case"] == 0
    assert found["mask_dice"] >= 0.9
