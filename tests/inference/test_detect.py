"""A detector over a volume: windows only where there is bone, the same result in any batch, and back to the source."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.inference.detect import DetectionInferer
from volseg.inference.detections_to_source import DetectedLesionsd, by_volume


class BrightThings:
    """A stand-in for a trained detector: every bright connected thing of a window is a lesion, with a tight box."""

    def __init__(self) -> None:
        self.windows = 0

    def predict(self, windows):
        from scipy import ndimage

        self.windows += len(windows)
        found = []
        for window in windows:
            labels, _ = ndimage.label((window[0] > 0.5).numpy())
            boxes = [[s.start for s in b] + [s.stop for s in b] for b in ndimage.find_objects(labels)]
            n = len(boxes)
            found.append(
                {
                    "box": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6),
                    "label_scores": torch.full((n,), 0.9),
                    "mask": torch.ones(n, 4, 4, 4),
                }
            )
        return found, (windows[:, 0] > 0.5).float()


def volume(shape=(50, 46, 40)) -> tuple[torch.Tensor, list[tuple[slice, ...]]]:
    image = -torch.ones(1, 1, *shape)
    places = [
        (slice(4, 12), slice(4, 10), slice(5, 12)),
        (slice(20, 36), slice(18, 30), slice(14, 26)),  # cut by eight windows
        (slice(40, 46), slice(36, 42), slice(30, 36)),
    ]
    for place in places:
        image[(0, 0, *place)] = 1
    return image, places


def test_a_lesion_cut_by_eight_windows_is_one_and_every_outline_is_right():
    image, places = volume()
    found = DetectionInferer(24, overlap=0.25)(image, BrightThings())[0]
    probability, owner, score = found
    assert found.shape == (3, 50, 46, 40)
    assert len(owner.unique()) == 1 + len(places)
    truth = image[0, 0] > 0
    assert torch.equal(probability >= 0.5, truth)
    for place in places:
        assert len(owner[place].unique()) == 1
        assert float(score[place].min()) == pytest.approx(0.9)


def test_neither_the_batch_nor_the_overlap_changes_the_lesions():
    image, _ = volume()
    one = DetectionInferer(24, 1, 0.5)(image, BrightThings())
    many = DetectionInferer(24, 7, 0.5)(image, BrightThings())
    assert torch.equal(one, many)
    wide = DetectionInferer(24, 3, 0.25)(image, BrightThings())
    assert torch.equal(one[0, 0] >= 0.5, wide[0, 0] >= 0.5)


class LeansRight(BrightThings):
    """Every box one voxel too far along X."""

    def predict(self, windows):
        found, semantic = super().predict(windows)
        lean = torch.tensor([1.0, 0, 0, 1, 0, 0])
        return [one | {"box": one["box"] + lean} for one in found], semantic.roll(1, dims=1)


class SeesEverySecondTime(BrightThings):
    """Finds nothing in every second look at a window."""

    def predict(self, windows):
        found, semantic = super().predict(windows)
        nothing = (self.windows // len(windows)) % 2 == 0
        return [{k: v[:0] for k, v in one.items()} if nothing else one for one in found], semantic


def test_mirrored_looks_are_turned_back_and_averaged():
    image, places = volume((24, 24, 24))[0], [(slice(4, 12), slice(4, 10), slice(5, 12))]
    image[:] = -1
    image[(0, 0, *places[0])] = 1
    detector = LeansRight()
    probability = DetectionInferer(24, mirror_axes=(0,), instance_weight=0.0)(image, detector)[0, 0]
    assert detector.windows == 2
    # Leaning right once and left once: both ends are half believed, the middle wholly.
    assert probability[5:11, 4:10, 5:12].min() == 1
    assert torch.equal(probability[[3, 4, 11, 12], 6, 6] == 0.5, torch.tensor([False, True, True, False]))


def test_a_lesion_that_the_mirrored_look_does_not_show_keeps_its_best_look_s_score():
    image = -torch.ones(1, 1, 24, 24, 24)
    image[0, 0, 8:14, 8:14, 8:14] = 1
    once = DetectionInferer(24, score=0.1)(image, BrightThings())[0, 2].max()
    twice = DetectionInferer(24, score=0.1, mirror_axes=(1,))(image, SeesEverySecondTime())[0, 2].max()
    assert float(once) == pytest.approx(0.9) and float(twice) == pytest.approx(0.9)


def test_a_shift_by_one_stride_shifts_the_lesions():
    image, _ = volume()
    moved = torch.nn.functional.pad(image, (0, 0, 0, 0, 12, 0), value=-1.0)
    before = DetectionInferer(24, overlap=0.5)(image, BrightThings())[0, 0] >= 0.5
    after = DetectionInferer(24, overlap=0.5)(moved, BrightThings())[0, 0] >= 0.5
    assert torch.equal(after[12:], before)


def test_windows_without_bone_are_not_visited_and_no_bone_gives_nothing():
    image, places = volume()
    bone = torch.zeros_like(image)
    bone[(0, 0, *places[0])] = 1
    detector = BrightThings()
    found = DetectionInferer(24, overlap=0.5)(image, detector, occupancy=bone)
    assert detector.windows == 1
    assert float(found[0, 0][places[0]].min()) >= 0.5 and float(found[0, 0][places[2]].max()) == 0
    everywhere = DetectionInferer(24, all_windows=True)(image, BrightThings(), occupancy=bone)
    assert float(everywhere[0, 0][places[2]].min()) >= 0.5, "--all-windows looks beyond the bone"
    nothing = DetectionInferer(24)(image, BrightThings(), occupancy=torch.zeros_like(image))
    assert nothing.shape == (1, 3, 50, 46, 40) and float(nothing.abs().max()) == 0


def test_a_volume_smaller_than_a_window_is_taken():
    image = -torch.ones(1, 1, 10, 30, 12)
    image[0, 0, 2:6, 10:16, 3:8] = 1
    found = DetectionInferer(24)(image, BrightThings())
    assert torch.equal(found[0, 0] >= 0.5, image[0, 0] > 0)


def test_lesions_below_the_score_are_dropped():
    image, _ = volume()
    assert float(DetectionInferer(24, score=0.95)(image, BrightThings()).abs().max()) == 0


def test_the_way_back_numbers_lesions_by_size_and_keeps_their_scores():
    image, places = volume()
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    found = DetectionInferer(24)(image, BrightThings())[0]
    found[2][places[1]] = 0.7
    found[2][found[1] == found[1][places[1]].unique()[0]] = 0.7
    pred = MetaTensor(found, affine=torch.from_numpy(affine))
    pred.meta["original_affine"] = np.diag([-1.0, 1.0, 1.0, 1.0])
    pred.meta["original_affine"][:3, 3] = (0.5, -0.5, -0.5)
    pred.meta["spatial_shape"] = (100, 92, 80)
    out = DetectedLesionsd("pred", min_volume_mm3=30)({"pred": pred})
    assert out["pred"].shape == (1, 100, 92, 80)
    sizes = torch.bincount(out["pred"].as_tensor().flatten().long())[1:]
    assert len(sizes) == 3 and bool((sizes.diff() < 0).all())
    # The largest is 16 x 12 x 12 voxels of 2 mm: 18,432 mm3; interpolation rounds its edges.
    assert float(sizes[0]) == pytest.approx(18432, rel=0.1)
    assert out["scores"] == pytest.approx((0.7, 0.9, 0.9))


def test_small_lesions_are_dropped_and_the_rest_renumbered():
    instances = np.zeros((6, 6, 6), np.int32)
    instances[0, 0, 0] = 5
    instances[2:4, 2:4, 2:4] = 2
    instances[5, :, :] = 9
    numbered, kept = by_volume(instances, np.diag([1.0, 2.0, 1.0, 1.0]), 16.0)
    assert kept == [9, 2], "8 voxels of 2 mm3 are just enough, 1 is not"
    assert (numbered[5, 0, 0], numbered[2, 2, 2], numbered[0, 0, 0]) == (1, 2, 0)


class HeedsOthers(BrightThings):
    """Believes the mean of two other networks' maps instead of what it sees."""

    def predict(self, windows, beside):
        assert windows.shape[1] == 1 and beside.shape[1] == 2
        return super().predict(beside.mean(dim=1, keepdim=True))


@pytest.mark.parametrize("shape", [(50, 46, 40), (20, 22, 24)])
def test_other_networks_maps_are_cut_padded_and_mirrored_with_the_image(shape):
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    beside = torch.zeros(1, 2, *shape)
    beside[:, :, 3:12, 5:16, 6:14] = 0.8
    beside[:, 1, 3:12, 5:16, 6:14] = 0.6
    for axes in ([], [0, 2]):
        found = DetectionInferer(24, overlap=0.25, mirror_axes=axes)(image, HeedsOthers(), beside=beside)[0]
        assert torch.equal(found[0] >= 0.5, beside[0, 0] > 0)
