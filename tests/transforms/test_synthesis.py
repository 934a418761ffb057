"""Grown lesions: the mask is exact, the rest of the CT untouched, kinds are what they are called, sizes are in mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from volseg.errors import InputError
from volseg.geometry import ras_mm_to_voxel, spacing_mm, voxel_volume_mm3
from volseg.phantoms import Phantom, ct_phantom
from volseg.transforms.synthesis import Grown, grow_lesions
from volseg.transforms.synthesis_canvas import REACH_MM, SMALLEST_GAP_MM, SMALLEST_LESION_MM3
from volseg.transforms.synthesis_distractors import DISTRACTORS
from volseg.transforms.synthesis_scanner import Scanner, measure_scanner
from volseg.types import Volume


@dataclass(frozen=True, eq=False)
class Block:
    """A cube of homogeneous marrow in a shell of cortex, in fat: everything about it is known."""

    volume: Volume
    bone: NDArray[np.bool_]
    marrow: NDArray[np.bool_]
    cortex: NDArray[np.bool_]


def block(spacing: tuple[float, float, float], marrow_hu: float = 180.0, side_mm: float = 64.0) -> Block:
    counts = [round(side_mm / s) for s in spacing]
    shape = tuple(n + 2 * round(8 / s) for n, s in zip(counts, spacing, strict=True))
    bone = np.zeros(shape, bool)
    bone[tuple(slice(round(8 / s), round(8 / s) + n) for n, s in zip(counts, spacing, strict=True))] = True
    marrow = ndimage.distance_transform_edt(bone, sampling=spacing) > 2
    voxels = np.where(marrow, marrow_hu, np.where(bone, 1000.0, -100.0))
    voxels = voxels + np.random.default_rng(1).normal(0, 12, shape)
    affine = np.diag([*spacing, 1.0])
    return Block(Volume(voxels.astype(np.float32), affine), bone, marrow, bone & ~marrow)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return ct_phantom(np.random.default_rng(11), size_mm=(130, 130, 120), spacing_mm=(1.2, 1.2, 1.3))


@pytest.fixture(scope="module")
def scanner(phantom: Phantom) -> Scanner:
    return measure_scanner(phantom.volume.voxels, phantom.volume.affine)


@pytest.fixture(scope="module")
def grown(phantom: Phantom, scanner: Scanner) -> Grown:
    return grow_lesions(phantom.volume, n=8, rng=np.random.default_rng(4), bone=phantom, scanner=scanner, distractors=5)


def test_ids_are_one_to_n_and_each_mask_is_one_piece_of_the_stated_size(phantom: Phantom, grown: Grown) -> None:
    assert [lesion.id for lesion in grown.lesions] == list(range(1, 9))
    assert set(np.unique(grown.instances)) == set(range(9))
    for lesion in grown.lesions:
        mask = grown.instances == lesion.id
        assert ndimage.label(mask)[1] == 1
        assert mask.sum() * voxel_volume_mm3(phantom.volume.affine) == pytest.approx(lesion.volume_mm3)
        assert lesion.volume_mm3 >= SMALLEST_LESION_MM3
        center = np.argwhere(mask).mean(0)
        assert np.allclose(ras_mm_to_voxel(phantom.volume.affine, lesion.center_ras_mm), center, atol=1e-6)


def test_voxels_beyond_a_lesions_reach_are_unchanged_bit_for_bit(phantom: Phantom, grown: Grown) -> None:
    touched = (grown.instances > 0) | (grown.distractor_instances > 0)
    far = ndimage.distance_transform_edt(~touched, sampling=spacing_mm(phantom.volume.affine)) > REACH_MM + 2
    assert far.mean() > 0.5
    assert np.array_equal(grown.volume.voxels[far], phantom.volume.voxels[far])
    assert grown.volume.voxels.dtype == phantom.volume.voxels.dtype
    assert not np.array_equal(grown.volume.voxels, phantom.volume.voxels)


def test_the_source_volume_is_left_alone(phantom: Phantom, scanner: Scanner) -> None:
    before = phantom.volume.voxels.copy()
    grow_lesions(phantom.volume, n=2, rng=np.random.default_rng(0), bone=phantom, scanner=scanner)
    assert np.array_equal(before, phantom.volume.voxels)


def test_lesions_and_distractors_keep_their_distance(phantom: Phantom, grown: Grown) -> None:
    spacing = spacing_mm(phantom.volume.affine)
    for lesion in grown.lesions:
        own = grown.instances == lesion.id
        others = ((grown.instances > 0) & ~own) | (grown.distractor_instances > 0)
        assert ndimage.distance_transform_edt(~others, sampling=spacing)[own].min() >= SMALLEST_GAP_MM


def test_lesions_without_a_soft_part_lie_in_bone(phantom: Phantom, grown: Grown) -> None:
    for lesion in grown.lesions:
        if not lesion.parameters.get("soft_part_mm"):
            assert phantom.bone[grown.instances == lesion.id].mean() >= 0.9, lesion


def test_the_same_seed_gives_the_same_case_and_another_seed_another(phantom: Phantom, scanner: Scanner) -> None:
    one, same, other = (
        grow_lesions(phantom.volume, n=3, rng=np.random.default_rng(s), bone=phantom, scanner=scanner)
        for s in (5, 5, 6)
    )
    assert np.array_equal(one.volume.voxels, same.volume.voxels)
    assert one.lesions == same.lesions
    assert not np.array_equal(one.instances, other.instances)


@pytest.mark.parametrize(("kind", "marrow_hu"), [("lytic", 180.0), ("sclerotic", 180.0), ("sclerotic", -20.0)])
def test_lytic_is_darker_and_sclerotic_brighter_than_the_marrow_around(kind: str, marrow_hu: float) -> None:
    case = block((1.0, 1.0, 1.5), marrow_hu)
    grown = grow_lesions(case.volume, n=6, rng=np.random.default_rng(8), bone=case, kinds={kind: 1.0})
    assert len(grown.lesions) == 6
    for lesion in grown.lesions:
        assert lesion.kind == kind
        assert lesion.marrow_hu == pytest.approx(marrow_hu, abs=15)
        inside = float(np.median(grown.volume.voxels[(grown.instances == lesion.id) & case.marrow]))
        assert (inside < lesion.marrow_hu - 30) if kind == "lytic" else (inside > lesion.marrow_hu + 50)


def test_a_mixed_lesion_holds_both_darker_and_denser_parts() -> None:
    case = block((1.0, 1.0, 1.0))
    grown = grow_lesions(
        case.volume, n=3, rng=np.random.default_rng(2), bone=case, kinds={"mixed": 1.0}, diameters_mm=(16, 22)
    )
    for lesion in grown.lesions:
        inside = grown.volume.voxels[(grown.instances == lesion.id) & case.marrow]
        assert np.percentile(inside, 10) < 120 and np.percentile(inside, 90) > 240


def test_fatty_marrow_still_shows_a_lytic_lesion() -> None:
    """Soft tissue of 50 HU in marrow of 40 HU would be invisible: the contrast is drawn against the marrow."""
    case = block((1.0, 1.0, 1.0), marrow_hu=40.0)
    grown = grow_lesions(case.volume, n=4, rng=np.random.default_rng(3), bone=case, kinds={"lytic": 1.0})
    assert len(grown.lesions) == 4
    for lesion in grown.lesions:
        assert abs(lesion.parameters["tissue_hu"] - lesion.marrow_hu) >= 45


def test_sizes_are_millimetres_whatever_the_spacing() -> None:
    volumes = []
    for spacing in ((1.0, 1.0, 1.0), (0.8, 0.8, 3.0)):
        case = block(spacing, side_mm=84)
        grown = grow_lesions(
            case.volume,
            n=8,
            rng=np.random.default_rng(12),
            bone=case,
            kinds={"sclerotic": 1.0},
            diameters_mm=(17.9, 18.1),
        )
        volumes.append(np.median([lesion.volume_mm3 for lesion in grown.lesions]))
        for lesion in grown.lesions:
            extent = np.ptp(np.argwhere(grown.instances == lesion.id) * spacing, axis=0)
            assert (extent > 6).all() and (extent < 40).all()
    # A sphere of 18 mm has 3054 mm3.
    assert volumes[0] == pytest.approx(volumes[1], rel=0.7)
    assert 1500 < volumes[0] < 5000 and 1500 < volumes[1] < 5000


def test_noise_continues_inside_a_lesion() -> None:
    case = block((1.0, 1.0, 1.0))
    grown = grow_lesions(
        case.volume, n=3, rng=np.random.default_rng(1), bone=case, kinds={"lytic": 1.0}, diameters_mm=(18, 24)
    )
    rest = grown.volume.voxels - ndimage.gaussian_filter(grown.volume.voxels, 1.5)
    core = ndimage.binary_erosion(grown.instances > 0, iterations=4) & ndimage.binary_erosion(case.marrow, iterations=3)
    calm = ndimage.binary_erosion(case.marrow & (grown.instances == 0), iterations=8)
    assert core.sum() > 300
    assert rest[core].std() == pytest.approx(rest[calm].std(), rel=0.35)


@pytest.mark.parametrize("name", sorted(DISTRACTORS))
def test_every_distractor_is_painted_and_stays_background(
    name: str, phantom: Phantom, scanner: Scanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volseg.transforms.synthesis.DISTRACTORS", {name: DISTRACTORS[name]})
    grown = grow_lesions(
        phantom.volume, n=0, rng=np.random.default_rng(9), bone=phantom, scanner=scanner, distractors=2
    )
    assert grown.distractors and {d.kind for d in grown.distractors} == {name}
    assert not grown.instances.any()
    change = grown.volume.voxels.astype(int) - phantom.volume.voxels
    assert np.abs(change[grown.distractor_instances > 0]).mean() > 30


def test_nothing_asked_nothing_changed(phantom: Phantom) -> None:
    grown = grow_lesions(phantom.volume, n=0, rng=np.random.default_rng(0), bone=phantom)
    assert grown.lesions == () and not grown.instances.any()
    assert np.array_equal(grown.volume.voxels, phantom.volume.voxels)


def test_a_volume_without_bone_is_refused() -> None:
    water = Volume(np.zeros((40, 40, 20), np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    with pytest.raises(InputError, match="no bone"):
        grow_lesions(water, n=1, rng=np.random.default_rng(0))


def test_the_scanner_is_read_from_the_picture() -> None:
    """A CT blurred along z, with noise of 20 HU: both are found again."""
    phantom = ct_phantom(np.random.default_rng(1), size_mm=(120, 140, 70), noise_hu=20.0)
    sharp = measure_scanner(phantom.volume.voxels, phantom.volume.affine)
    assert sharp.noise_hu == pytest.approx(20, rel=0.25)
    blurred = ndimage.gaussian_filter1d(phantom.volume.voxels.astype(np.float32), 2.0, axis=2)
    thick = measure_scanner(blurred, phantom.volume.affine)
    assert thick.blur_mm[2] > 1.7 * sharp.blur_mm[2]
    assert thick.noise_hu < 0.7 * sharp.noise_hu
    along = float((thick.grain[:, :, 1:] * thick.grain[:, :, :-1]).mean())
    across = float((thick.grain[1:] * thick.grain[:-1]).mean())
    assert along > 0.8 > across
