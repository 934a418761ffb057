"""A phantom's truth is known by construction: these tests look whether the picture keeps to it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volseg.errors import UsageError
from volseg.geometry import axis_codes, ras_mm_to_voxel
from volseg.phantoms import BUILDS, Phantom, ct_phantom

SPACING = (1.2, 1.3, 2.4)
WIDTH_MM, HEIGHT_MM = 150.0, 110.0


def size_of(region: str) -> tuple[float, float, float]:
    return (WIDTH_MM, BUILDS[region].size_mm[1], HEIGHT_MM)


@pytest.fixture(scope="module", params=sorted(BUILDS))
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return ct_phantom(
        np.random.default_rng(5), region=request.param, spacing_mm=SPACING, size_mm=size_of(request.param)
    )


def test_the_grid_is_ras_with_the_asked_spacing_and_size(phantom: Phantom) -> None:
    volume = phantom.volume
    assert axis_codes(volume.affine) == "RAS"
    assert np.allclose(np.diag(volume.affine)[:3], SPACING)
    expected = [round(extent / step) for extent, step in zip(size_of(phantom.region), SPACING, strict=True)]
    assert volume.voxels.shape == tuple(expected)
    assert volume.voxels.dtype == np.int16
    # The picture is centered left to right and head to foot.
    middle = ras_mm_to_voxel(volume.affine, (0, 0, 0)) * SPACING
    assert abs(middle[0] - WIDTH_MM / 2) < 2 * SPACING[0]


def test_marrow_and_cortex_make_up_the_bone(phantom: Phantom) -> None:
    assert phantom.marrow.any() and phantom.cortex.any()
    assert not (phantom.marrow & phantom.cortex).any()
    assert np.array_equal(phantom.marrow | phantom.cortex, phantom.bone)


def test_bone_is_dense_outside_and_cancellous_inside(phantom: Phantom) -> None:
    voxels = phantom.volume.voxels
    deep = ndimage.distance_transform_edt(phantom.bone, sampling=SPACING) > 5
    # Dense facets and the femoral heads (1.5 times) lie above, fatty trochanters (0.3 times) below.
    assert 0.4 * phantom.marrow_hu < np.median(voxels[deep]) < 1.4 * phantom.marrow_hu
    assert np.median(voxels[phantom.cortex]) > 1.5 * np.median(voxels[deep])


def test_the_body_holds_fat_and_muscle_and_lies_in_air_on_a_table(phantom: Phantom) -> None:
    voxels = phantom.volume.voxels
    assert 0.05 < ((voxels > -140) & (voxels < -60)).mean() < 0.6
    assert 0.05 < ((voxels > 0) & (voxels < 110)).mean() < 0.6
    corner = voxels[:4, -4:, :]
    assert corner.mean() < -950
    # Straight below the patient the table's shell is denser than air, its foam is not.
    below = voxels[voxels.shape[0] // 2, : round(16 / SPACING[1])].mean(axis=1)
    assert below.max() > -700 and below.min() < -850


def test_left_is_not_right(phantom: Phantom) -> None:
    difference = phantom.volume.voxels.astype(float) - phantom.volume.voxels[::-1]
    assert np.abs(ndimage.uniform_filter(difference, 9)).max() > 100


def test_the_aorta_runs_on_the_patients_left() -> None:
    phantom = ct_phantom(np.random.default_rng(2), region="abdomen", size_mm=(110, 140, 60), spacing_mm=(1.3, 1.3, 1.3))
    voxels = ndimage.gaussian_filter(phantom.volume.voxels.astype(np.float32), 2)
    contrast = (voxels > 150) & ~ndimage.binary_dilation(phantom.bone, iterations=5)
    height = voxels.shape[2] // 2
    x = ras_mm_to_voxel(phantom.volume.affine, (0, 0, 0))[0]
    central = slice(round(x) - 30, round(x) + 30)
    columns = np.argwhere(contrast[central, :, height])[:, 0] - 30
    assert columns.size > 100 and columns.mean() < -5


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another() -> None:
    one, same, other = (
        ct_phantom(np.random.default_rng(s), size_mm=(90, 110, 60), spacing_mm=SPACING) for s in (7, 7, 8)
    )
    assert np.array_equal(one.volume.voxels, same.volume.voxels)
    assert np.array_equal(one.marrow, same.marrow)
    assert not np.array_equal(one.bone, other.bone)


def test_a_vertebra_keeps_its_size_on_a_coarse_grid() -> None:
    fine, coarse = (
        ct_phantom(np.random.default_rng(3), size_mm=(100, 110, 72), spacing_mm=spacing)
        for spacing in ((1.2, 1.2, 1.2), (1.2, 1.2, 3.6))
    )
    assert 3.0 * coarse.bone.sum() == pytest.approx(fine.bone.sum(), rel=0.1)


def test_unknown_regions_and_spacings_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="no phantom for region 'skull'; there are abdomen, thorax, pelvis"):
        ct_phantom(np.random.default_rng(0), region="skull")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"outside 0\.3\.\.6 mm"):
        ct_phantom(np.random.default_rng(0), spacing_mm=(1, 1, 60))
