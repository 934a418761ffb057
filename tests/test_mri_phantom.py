"""The MRI phantom's truth is known by construction: these tests look whether the four pictures keep to it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volseg.errors import UsageError
from volseg.geometry import ras_mm_to_voxel, voxel_to_ras_mm
from volseg.labels import MRI_CHANNELS
from volseg.phantoms.mri import MriOptions, MriPhantom, mri_phantom
from volseg.phantoms.mri_signal import PROTOCOLS, TISSUES, Protocol, Tissue, draw_contrasts, marrow_signal, spin_echo

SMALL = {"size_mm": (56.0, 130.0, 76.0), "spacing_mm": (3.6, 1.4, 1.4)}


def phantom_of(kind: str, seed: int = 2) -> MriPhantom:
    options = MriOptions(**SMALL, lesions=2, kinds={kind: 1.0}, diameters_mm=(16, 22), bias=0.0, noise=0.02)
    return mri_phantom(np.random.default_rng(seed), options)


@pytest.fixture(scope="module")
def lytic() -> MriPhantom:
    return phantom_of("lytic")


@pytest.fixture(scope="module")
def sclerotic() -> MriPhantom:
    return phantom_of("sclerotic")


def on_reference(phantom: MriPhantom, channel: str) -> np.ndarray:
    """A channel on the first one's grid by what the phantom says of the motion."""
    first, volume = next(iter(phantom.volumes.values())), phantom.volumes[channel]
    to_voxel = np.linalg.inv(volume.affine) @ phantom.motion[channel] @ first.affine
    return ndimage.affine_transform(
        volume.voxels.astype(float), to_voxel[:3, :3], to_voxel[:3, 3], output_shape=first.voxels.shape, order=1
    )


def contrast(phantom: MriPhantom, channel: str) -> float:
    """(lesion - marrow) / marrow, both two voxels inside."""
    seen = on_reference(phantom, channel)
    plane = np.zeros((1, 3, 3), bool) | ndimage.generate_binary_structure(2, 1)
    core = ndimage.binary_erosion(phantom.instances > 0, plane, iterations=2)
    healthy = phantom.marrow & ~ndimage.binary_dilation(phantom.instances > 0, iterations=3)
    marrow = np.median(seen[ndimage.binary_erosion(healthy, plane, iterations=2)])
    return float((np.median(seen[core]) - marrow) / marrow)


def test_spin_echo_is_its_equation() -> None:
    # exp(-1) left to recover, exp(-1/2) of it decayed: 0.8 (1 - 0.3679) 0.6065.
    assert spin_echo(Tissue(0.8, 500, 100), Protocol(500, 50)) == pytest.approx(0.8 * 0.63212 * 0.60653, rel=1e-4)
    # Inversion nulls a tissue at TI = ln 2 T1 where TR is long.
    assert spin_echo(Tissue(1, 250, 80), Protocol(1e5, 30, ti_ms=250 * np.log(2))) == pytest.approx(0, abs=1e-9)


def test_tissues_stand_in_the_order_every_radiologist_knows() -> None:
    def ranked(channel: str) -> list[str]:
        level = {name: spin_echo(tissue, PROTOCOLS[channel]) for _, name, tissue in TISSUES}
        level["marrow"] = marrow_signal(channel, 0.45)
        return sorted(level, key=lambda name: -level[name])

    assert ranked("T1")[:2] == ["fat", "marrow"]
    assert ranked("T2")[0] == ranked("STIR")[0] == "fluid"
    assert ranked("STIR").index("fat") > ranked("STIR").index("muscle")


def test_mean_contrasts_are_the_published_ones() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_contrasts("lytic", rng) for _ in range(800)]
    for channel, published in (("T1", -0.42), ("T2", 1.21), ("STIR", 2.62)):
        assert np.mean([d[channel] for d in drawn]) == pytest.approx(published, abs=0.08)


def test_lytic_lesions_are_dark_in_t1_bright_in_t2_and_stir_and_enhance(lytic) -> None:
    seen = {channel: contrast(lytic, channel) for channel in MRI_CHANNELS}
    assert len(lytic.lesions) == 2
    assert seen["T1"] < -0.15 and seen["T2"] > 0.3 and seen["STIR"] > 1.0
    assert (1 + seen["T1c"]) / (1 + seen["T1"]) > 1.3


def test_sclerotic_lesions_are_dark_in_all(sclerotic) -> None:
    assert all(contrast(sclerotic, channel) < -0.1 for channel in MRI_CHANNELS)


def test_masks_lie_on_the_first_grid_in_bone_and_are_what_the_lesions_say(lytic) -> None:
    first = lytic.volumes["T1"]
    assert lytic.instances.shape == lytic.bone.shape == first.voxels.shape
    assert sorted(np.unique(lytic.instances)) == [0, *(lesion.id for lesion in lytic.lesions)]
    assert lytic.bone[lytic.instances > 0].mean() > 0.98
    for lesion in lytic.lesions:
        mask = lytic.instances == lesion.id
        assert lesion.volume_mm3 == pytest.approx(mask.sum() * 3.6 * 1.4 * 1.4)
        assert np.allclose(ras_mm_to_voxel(first.affine, lesion.center_ras_mm), np.argwhere(mask).mean(0))


def test_sequences_have_their_own_grids_and_a_small_motion(lytic) -> None:
    affines = [volume.affine for volume in lytic.volumes.values()]
    assert all(not np.allclose(affines[0], other) for other in affines[1:])
    assert np.array_equal(lytic.motion["T1"], np.eye(4))
    middle = voxel_to_ras_mm(affines[0], (np.asarray(lytic.instances.shape) - 1) / 2)
    moved = [np.linalg.norm(voxel_to_ras_mm(lytic.motion[c], middle) - middle) for c in ("T1c", "T2", "STIR")]
    assert all(0.05 < shift < 4 for shift in moved)


def test_air_is_rayleigh_and_never_negative(lytic) -> None:
    voxels = lytic.volumes["T1"].voxels
    air = voxels[:, :3].astype(float)
    assert voxels.dtype == np.int16 and air.min() >= 0
    # Mean over deviation of a Rayleigh variable: sqrt(pi / (4 - pi)) = 1.913.
    assert air.mean() / air.std() == pytest.approx(1.913, rel=0.1)


def test_shading_stays_within_its_bounds() -> None:
    plain, shaded = (
        mri_phantom(np.random.default_rng(3), MriOptions(**SMALL, channels=("T1",), lesions=0, noise=0.0, bias=bias))
        for bias in (0.0, 0.3)
    )
    a, b = plain.volumes["T1"].voxels.astype(float), shaded.volumes["T1"].voxels.astype(float)
    ratio = (b / np.maximum(a, 1))[a > 0.3 * a.max()]
    assert 1.2 < ratio.max() / ratio.min() < 1.3 / 0.7 * 1.05


def test_the_same_seed_gives_the_same_phantom_and_another_seed_another(lytic) -> None:
    same, other = phantom_of("lytic"), phantom_of("lytic", seed=9)
    assert all(np.array_equal(same.volumes[c].voxels, lytic.volumes[c].voxels) for c in MRI_CHANNELS)
    assert np.array_equal(same.instances, lytic.instances)
    assert not np.array_equal(other.bone, lytic.bone)


def test_strange_wishes_are_refused() -> None:
    with pytest.raises(UsageError, match="skull"):
        mri_phantom(np.random.default_rng(0), MriOptions(region="skull"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"0\.5\.\.8 mm"):
        mri_phantom(np.random.default_rng(0), MriOptions(spacing_mm=(40, 1, 1)))
