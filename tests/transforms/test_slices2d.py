"""Pictures: orientation, CLAHE by hand, noise and mirror; all deterministic per seed, geometry kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, ScaleIntensityRanged
from PIL import Image

from volseg.errors import UsageError
from volseg.transforms.clahe import clahe
from volseg.transforms.ct import HounsfieldWindowd
from volseg.transforms.slices2d import (
    PictureMaskd,
    RandClahed,
    RandMirrord,
    RandSaltPepperd,
    SlicesOfCtd,
    as_rows,
    as_xy,
    axial_picture,
)


@pytest.fixture
def grey() -> torch.Tensor:
    y, x = np.mgrid[:48, :64]
    noise = np.random.default_rng(1).normal(0, 4, (48, 64))
    return torch.from_numpy((90 + 40 * np.sin(x / 9) * np.cos(y / 7) + noise).clip(0, 255).astype(np.float32)[None])


def test_front_is_up_and_the_patients_right_is_left():
    ras = np.full((4, 3), -1000.0)  # x runs to the right, y to the front
    ras[3, 2] = 2000  # right and front
    picture = axial_picture(ras)
    assert picture.shape == (3, 4) and picture.dtype == np.uint8
    assert picture[0, 0] == 255 and picture.sum() == 255
    assert np.array_equal(as_xy(as_rows(ras)), ras)


def test_a_scaled_picture_is_the_windowed_ct():
    hu = torch.linspace(-300, 1200, 301)[None, :, None]
    windowed = HounsfieldWindowd(["image"])({"image": hu})["image"]
    picture = {"image": torch.from_numpy(as_xy(axial_picture(hu[0].numpy())))[None].float()}
    scaled = ScaleIntensityRanged("image", 0, 255, -1, 1)(picture)["image"]
    assert torch.allclose(torch.as_tensor(windowed), torch.as_tensor(scaled), atol=1 / 255 + 1e-6)


def test_clahe_with_one_tile_and_no_limit_is_histogram_equalisation():
    picture = np.array([[10, 10, 20], [20, 20, 30]], np.uint8)
    # Cumulative shares 2/6, 5/6, 6/6 of 255.
    assert clahe(picture, 256, (1, 1)).tolist() == [[85, 85, 212], [212, 212, 255]]


def test_the_limit_spreads_what_it_cuts_over_all_levels():
    # 1024 pixels, half 100, half 200; limit 1 lets 4 per level stand: 1016 are cut, 3 to every level, and 248 more
    # to levels 0..247. Up to level 100 inclusive: 101 x 3 + 101 + 4 = 408 of 1024.
    picture = np.full((32, 32), 100, np.uint8)
    picture[16:] = 200
    out = clahe(picture, 1.0, (1, 1))
    assert out[0, 0] == round(255 * 408 / 1024) and out[-1, 0] == round(255 * (201 * 4 + 8) / 1024)


def test_tiles_are_blended_without_seams():
    ramp = np.tile(np.linspace(60, 120, 64).astype(np.uint8), (64, 1))
    out = clahe(ramp, 2.0, (4, 4)).astype(int)
    assert np.abs(np.diff(out, axis=1)).max() <= 12 and np.ptp(out) > np.ptp(ramp)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (50, 33), (64, 64)])
def test_clahe_takes_any_size(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    out = clahe(picture)
    assert out.shape == shape and out.dtype == np.uint8


def test_clahe_raises_local_contrast_and_leaves_masks_alone(grey):
    mask = (grey > 100).float()
    out = RandClahed("image")({"image": grey, "lesion": mask})
    assert out["image"].std() > 1.2 * grey.std() and out["lesion"] is mask
    assert out["image"].dtype == torch.float32 and out["image"].min() >= 0 and out["image"].max() <= 255


def test_salt_and_pepper_are_even_and_as_many_as_drawn(grey):
    picture = torch.full((1, 400, 400), 100.0)
    noise = RandSaltPepperd("image", prob=1.0, share=0.2).set_random_state(4)
    shares = []
    for _ in range(6):
        out = torch.as_tensor(noise({"image": picture})["image"])
        salt, pepper = (float((out == v).float().mean()) for v in (255, 0))
        assert set(out.unique().tolist()) <= {0.0, 100.0, 255.0} and abs(salt - pepper) < 0.005
        shares.append(salt + pepper)
    assert max(shares) <= 0.205 and len({round(s, 3) for s in shares}) > 3
    assert picture.unique().tolist() == [100.0]


def test_mirror_turns_image_and_masks_together(grey):
    picture = MetaTensor(grey)
    data = {"image": picture, "lesion": MetaTensor((grey > 100).float())}
    mirror = RandMirrord(["image", "lesion"], prob=1.0)
    out = mirror(data)
    assert torch.equal(torch.as_tensor(out["image"]), grey.flip(2))
    assert torch.equal(torch.as_tensor(out["lesion"]), (grey > 100).float().flip(2))
    assert torch.equal(torch.as_tensor(mirror.inverse(out)["image"]), grey)


def pipeline() -> Compose:
    return Compose(
        [
            RandClahed("image", prob=0.5, clip_limit=(1.0, 4.0)),
            RandSaltPepperd("image", prob=0.5),
            RandMirrord(["image"], prob=0.5),
        ]
    )


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(grey):
    def run(seed: int) -> torch.Tensor:
        steps = pipeline().set_random_state(seed)
        return torch.stack([torch.as_tensor(steps({"image": grey.clone()})["image"]) for _ in range(8)])

    assert torch.equal(run(7), run(7)) and not torch.equal(run(7), run(8))
    assert len({float(one.sum()) for one in run(7)}) > 3


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, MetaTensor])
def test_containers_are_kept(grey, kind):
    given = kind(grey.numpy()) if kind is np.asarray else kind(grey)
    for step in (RandClahed("image"), RandSaltPepperd("image", prob=1.0), PictureMaskd("image")):
        out = step({"image": given})["image"]
        assert type(out) is type(given) and out.shape == given.shape and str(out.dtype).endswith("float32")


def test_a_file_is_read_as_a_viewer_shows_it(tmp_path):
    mask = np.zeros((30, 40), np.uint8)
    mask[2:10, 5:20] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=40)
    load = LoadImaged("lesion", reader="PILReader", reverse_indexing=False, ensure_channel_first=True)
    out = PictureMaskd("lesion")(load({"lesion": tmp_path / "m.jpg"}))["lesion"]
    assert np.array_equal(out.numpy(), (mask > 0)[None])


def test_wrong_inputs_are_refused_in_words(grey):
    with pytest.raises(UsageError, match="before the scaling"):
        RandClahed("image")({"image": grey / 127.5 - 2})
    with pytest.raises(UsageError, match="before the scaling"):
        RandSaltPepperd("image", prob=1.0)({"image": grey + 200})
    with pytest.raises(UsageError, match=r"\(1, rows, columns\) is due, not \(3, 48, 64\)"):
        RandClahed("image")({"image": grey.repeat(3, 1, 1)})
    with pytest.raises(UsageError, match="clahe-limit"):
        RandClahed("image", clip_limit=0)
    with pytest.raises(UsageError, match="noise-share"):
        RandSaltPepperd("image", share=2)


def test_a_ct_becomes_the_stack_of_pictures_that_axial_picture_makes(rng):
    hu = torch.as_tensor(rng.uniform(-1200, 2000, (1, 5, 4, 3)), dtype=torch.float32)
    lesion = torch.zeros(1, 5, 4, 3)
    lesion[0, 1, 2, 1] = 7  # instance numbers count as one lesion
    bone = torch.zeros(1, 5, 4, 3)
    bone[0, 3:, :, :] = 2
    out = SlicesOfCtd()({"image": hu, "bone": bone, "label": lesion})
    for k in range(3):
        assert np.array_equal(as_rows(out["image"][0, ..., k].numpy()), axial_picture(hu[0, ..., k].numpy()))
    assert out["label"].sum() == 1 and out["bone"].sum() == 2 * 4 * 3 + 1, "what is lesion is bone"
