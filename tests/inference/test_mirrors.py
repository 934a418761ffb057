"""Mirrored windows: every combination once, and detections that come back where they were."""

import pytest
import torch

from volseg.inference.mirrors import flip, flip_detections, mirrorings


def test_every_combination_comes_once_and_the_plain_look_first():
    assert mirrorings(()) == [()]
    assert mirrorings((2, 0)) == [(), (0,), (2,), (0, 2)]
    assert len(mirrorings((0, 1, 2))) == 8
    with pytest.raises(ValueError, match=r"mirror_axes.*3"):
        mirrorings((0, 3))


@pytest.mark.parametrize("axes", mirrorings((0, 1, 2)))
def test_a_detection_of_a_flipped_image_comes_back_to_its_place(axes):
    image = torch.zeros(10, 12, 14)
    image[2:5, 3:9, 1:4] = 1
    image[2, 3, 1] = 2  # a corner that tells the sides apart
    flipped = flip(image, axes)
    where = torch.nonzero(flipped)
    box = torch.cat([where.amin(0), where.amax(0) + 1]).float()[None]
    mask = flipped[tuple(slice(int(a), int(b)) for a, b in zip(box[0, :3], box[0, 3:], strict=True))][None]
    found = flip_detections({"box": box, "mask": mask, "label_scores": torch.ones(1)}, axes, image.shape)
    assert found["box"].tolist() == [[2, 3, 1, 5, 9, 4]]
    assert torch.equal(found["mask"][0], image[2:5, 3:9, 1:4])
