"""Bone without a model: on a hand-made body of known parts, and against vertebra masks of real CTs."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from volseg.geometry import lps_to_ras, ras_mm_to_voxel, spacing_mm, voxel_to_ras_mm
from volseg.transforms.bone import BoneMask, body_mask, bone_mask

SIZE_MM = (160.0, 130.0, 70.0)


class Body:
    """A trunk of 50 HU in air, 70 mm tall, drawn in mm so that any spacing shows the same body.

    Vertebra: 40 mm wide, 30 mm deep, 30 mm tall, cortex 2 mm of 600 HU, marrow 130 HU. Aorta: 24 mm wide, 300 HU, all
    the way down, 4 mm off the vertebra. Plaque: 6 mm of 900 HU in its wall. Table: 5 mm of 500 HU below the back.
    """

    def __init__(self, spacing: tuple[float, float, float]) -> None:
        shape = tuple(round(n / s) for n, s in zip(SIZE_MM, spacing, strict=True))
        self.affine = np.diag([*spacing, 1.0])
        slabs = max(1, round(spacing[2]))
        fine = np.array(shape) * (1, 1, slabs)
        step = np.array(spacing) / (1, 1, slabs)
        x, y, z = np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(fine, step, strict=True)], indexing="ij")
        self.x, self.y, self.z = x, y, z
        parts = {
            "trunk": ((x - 80) / 75) ** 2 + ((y - 75) / 50) ** 2 < 1,
            "aorta": (x - 80) ** 2 + (y - 86) ** 2 < 12**2,
            "vertebra": (abs(x - 80) < 20) & (abs(y - 55) < 15) & (abs(z - 35) < 15),
            "marrow": (abs(x - 80) < 18) & (abs(y - 55) < 13) & (abs(z - 35) < 13),
            "plaque": (x - 90) ** 2 + (y - 92) ** 2 + (z - 30) ** 2 < 3**2,
            "table": (y > 8) & (y < 13) & (abs(x - 80) < 75),
        }
        hu = np.full(x.shape, -1000.0)
        for name, value in zip(parts, (50, 300, 600, 130, 900, 500), strict=True):
            hu[parts[name]] = value

        # A thick slice is the mean of what it covers.
        def slices(image: np.ndarray) -> np.ndarray:
            return image.reshape(*shape, slabs).mean(axis=3)

        noise = np.random.default_rng(1).normal(0.0, 15.0, shape)
        hu = slices(hu)
        self.hu = np.where(hu > -900, hu + noise, hu).astype(np.float32)
        covered = {name: slices(part) >= 0.5 for name, part in parts.items()}
        self.vertebra, self.marrow, self.aorta = covered["vertebra"], covered["marrow"], covered["aorta"]
        self.plaque, self.table = covered["plaque"], covered["table"]


def share(part: np.ndarray, found: np.ndarray) -> float:
    return float(found[part].mean())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.0), (1.0, 1.0, 4.0)])
def test_a_vertebra_is_found_with_its_marrow_and_vessel_plaque_and_table_are_not(spacing):
    body = Body(spacing)
    found = bone_mask(body.hu, body.affine)
    assert share(body.vertebra, found.bone) > 0.95
    assert share(body.marrow, found.bone) > 0.98
    assert share(body.aorta, found.bone) < 0.05
    assert share(body.plaque, found.bone) < 0.5
    assert not found.bone[body.table].any()
    overlap = 2 * (found.bone & body.vertebra).sum() / (found.bone.sum() + body.vertebra.sum())
    assert overlap > 0.88


def test_volume_does_not_depend_on_the_spacing():
    volumes = []
    for spacing in [(1.0, 1.0, 1.0), (0.75, 0.75, 1.5), (2.0, 2.0, 2.0)]:
        body = Body(spacing)
        volumes.append(bone_mask(body.hu, body.affine).bone.sum() * np.prod(spacing))
    # The vertebra holds 40 x 30 x 30 = 36,000 mm³.
    np.testing.assert_allclose(volumes, 36_000, rtol=0.15)


def test_marrow_and_cortex_share_the_bone_out():
    body = Body((1.0, 1.0, 1.5))
    found = bone_mask(body.hu, body.affine)
    np.testing.assert_array_equal(found.bone, found.marrow | found.cortex)
    assert not (found.marrow & found.cortex).any()
    assert share(body.vertebra & ~body.marrow, found.marrow) < 0.15
    assert share(body.marrow, found.marrow) > 0.9


def test_orientation_does_not_matter():
    body = Body((1.0, 1.0, 2.0))
    turned = body.affine @ np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    voxels = np.flip(body.hu.transpose(1, 2, 0), 1)
    found = bone_mask(voxels, turned).bone
    back = np.flip(found, 1).transpose(2, 0, 1)
    straight = bone_mask(body.hu, body.affine).bone
    assert (back != straight).sum() < 0.1 * straight.sum()


@pytest.mark.parametrize("padding", [0.0, -1024.0, -3024.0])
def test_constant_padding_holds_no_bone_and_takes_none(padding):
    body = Body((1.0, 1.0, 1.5))
    hu = body.hu.copy()
    hu[:, :, 30:] = padding
    found = bone_mask(hu, body.affine).bone
    assert not found[:, :, 31:].any()
    kept = body.vertebra.copy()
    kept[:, :, 29:] = False
    assert share(kept, found) > 0.9


def test_resampled_padding_is_padding():
    """Interpolation leaves 1e-4 HU on a constant: such slices put before a scan move its bone and change none."""
    body = Body((1.0, 1.0, 2.0))
    cut = body.hu[:, :, 12:]  # through the vertebra, so that the face counts
    air = -1000 + np.random.default_rng(0).uniform(-2e-4, 2e-4, (*cut.shape[:2], 7))
    padded = bone_mask(np.concatenate([air, cut], axis=2), body.affine).bone
    assert not padded[:, :, :7].any()
    assert np.array_equal(padded[:, :, 7:], bone_mask(cut, body.affine).bone)


def test_a_lytic_lesion_open_to_soft_tissue_is_within_reach_and_costs_no_other_bone():
    body = Body((1.0, 1.0, 1.0))
    # A ball of 18 mm, half of it cut off by the lateral wall: no cortex is left over 18 mm.
    lesion = body.vertebra & ((body.x - 62) ** 2 + (body.y - 60) ** 2 + (body.z - 35) ** 2 < 9**2)
    found = bone_mask(np.where(lesion, 40.0, body.hu), body.affine).bone
    assert share(lesion, found) > 0.25
    assert share(body.vertebra & ~lesion, found) > 0.95
    assert share(lesion, ndimage.distance_transform_edt(~found) <= 6.0) > 0.95


def test_a_sclerotic_lesion_stays_inside():
    body = Body((1.0, 1.0, 1.0))
    lesion = (body.x - 80) ** 2 + (body.y - 55) ** 2 + (body.z - 35) ** 2 < 10**2
    assert share(lesion, bone_mask(np.where(lesion, 650.0, body.hu), body.affine).bone) == 1.0


@pytest.mark.parametrize("constant", [-1000.0, 0.0, 50.0])
def test_no_bone_is_no_error(constant):
    found = bone_mask(np.full((20, 30, 10), constant, dtype=np.float32), np.diag([1.0, 1.0, 3.0, 1.0]))
    assert isinstance(found, BoneMask)
    for mask in (found.bone, found.marrow, found.cortex):
        assert mask.shape == (20, 30, 10)
        assert mask.dtype == bool
        assert not mask.any()


def test_the_body_includes_bowel_gas_and_not_the_table():
    body = Body((1.0, 1.0, 2.0))
    trunk = body.hu > -900
    trunk[body.table] = False
    # A tube of gas 20 mm wide runs out of the image at both ends.
    gas = ((np.indices(body.hu.shape)[:2].T - (50, 80)) ** 2).sum(axis=-1).T < 10**2
    found = body_mask(np.where(gas, -1000.0, body.hu), spacing_mm(body.affine), 2)
    assert share(gas, found) == 1.0
    # Half a block of 3 mm off the skin: 1.5 mm x 397 mm of 11,781 mm², 5 %.
    assert share(trunk, found) > 0.95
    assert not found[body.table].any()


def test_a_grid_of_a_few_voxels_and_nan_are_no_error():
    hu = np.full((3, 4, 2), 700.0, dtype=np.float32)
    hu[0, 0, 0] = np.nan
    assert bone_mask(hu, np.eye(4)).bone.any()


def overlap_near(found: np.ndarray, truth: np.ndarray, other: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """Recall and precision within 8 mm of the reference, voxels of other labelled bones left out."""
    near = ndimage.distance_transform_edt(~truth, sampling=spacing_mm(affine)) <= 8.0
    found = found & near & ~other
    both = (found & truth).sum()
    return float(both / truth.sum()), float(both / found.sum())


def read(path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize(
    ("ct", "reference", "recall_floor", "precision_floor"),
    [
        ("totalseg_ct/example_ct.nii.gz", "totalseg_ct/vertebrae_ref/totalseg.nii.gz", 0.90, 0.78),
        (
            "tptbox_vertebra/sample_ct/sub-ct_label-22_ct.nii.gz",
            "tptbox_vertebra/sample_ct/sub-ct_seg-vert_label-22_msk.nii.gz",
            0.80,
            0.63,
        ),
    ],
)
def test_real_vertebrae(shared, ct, reference, recall_floor, precision_floor):
    hu, affine = read(shared / "data" / ct)
    truth = read(shared / "data" / reference)[0] > 0
    recall, precision = overlap_near(bone_mask(hu, affine).bone, truth, np.zeros_like(truth), affine)
    assert recall > recall_floor
    assert precision > precision_floor


# TotalSegmentator v2: sacrum, vertebrae, humeri to hips, skull, ribs and sternum; 79 is the spinal cord.
BONES = [*range(25, 51), *range(69, 79), 91, *range(92, 117)]
VERTEBRAE = range(26, 51)
CORD = 79


def test_real_bones_and_the_spinal_canal_stays_out(shared):
    hu, affine = read(shared / "data/totalseg_ct/example_ct_sm.nii.gz")
    labels = read(shared / "data/totalseg_ct/example_seg.nii.gz")[0]
    found = bone_mask(hu, affine).bone
    truth = np.isin(labels, VERTEBRAE)
    recall, precision = overlap_near(found, truth, np.isin(labels, BONES) & ~truth, affine)
    assert recall > 0.87
    assert precision > 0.82
    assert share(labels == CORD, found) < 0.15


def test_real_contrast_and_calcified_aorta_in_thick_dicom_slices(shared):
    folder = shared / "data/totalseg_dicom_j2k"
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "example_ct_dicom")))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    affine = lps_to_ras(lps)
    hu = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)[150:390, 150:390]
    affine[:3, 3] = voxel_to_ras_mm(affine, (150, 150, 0))
    seg, seg_affine = read(folder / "example_seg_dicom.nii.gz")
    to_seg = np.linalg.inv(seg_affine) @ affine
    labels = ndimage.affine_transform(seg, to_seg[:3, :3], to_seg[:3, 3], output_shape=hu.shape, order=0)
    found = bone_mask(hu, affine).bone
    truth = np.isin(labels, VERTEBRAE)
    recall, precision = overlap_near(found, truth, np.isin(labels, BONES) & ~truth, affine)
    assert recall > 0.93
    # The reference leaves out osteophytes and transverse processes: two thirds of the surplus is above 150 HU.
    assert precision > 0.53
    assert share(labels == CORD, found) < 0.15
    assert share(labels == 52, found) < 0.35


def test_real_metastases_lie_inside_or_within_six_millimetres(shared):
    folder = shared / "data/blds_bone_lesions"
    rows = [line.split(",") for line in (folder / "image_bone_lesions.csv").read_text().split()[1:]]
    near_share = []
    for name in ("1", "6", "7"):
        hu, affine = read(folder / f"{name}.nii.gz")
        found = bone_mask(hu, affine).bone
        near = ndimage.distance_transform_edt(~found) <= 6.0
        assert not found[:, :, (hu == 0.0).all(axis=(0, 1))].any()
        for row in (r for r in rows if r[0] == f"{name}.nii.gz"):
            x, y, z, *size = (float(v) for v in row[2:])
            center = ras_mm_to_voxel(affine, (-x, -y, z))
            offset = (np.indices(hu.shape).T - center) / (np.array(size) / 2)
            lesion = ((offset**2).sum(axis=-1) <= 1).T & (hu != 0.0)
            near_share.append(share(lesion, near))
    assert len(near_share) == 7
    assert min(near_share) > 0.95
