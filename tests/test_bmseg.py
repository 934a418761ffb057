"""`volseg bmseg` on a folder of small pictures: every fold trained and tested, tables written, leaks named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from volseg.cli import main
from volseg.inference.bundle import shipped_bundles
from volseg.inference.datasets import listed_cases
from volseg.synth import PHANTOM, SynthOptions, write_cases

SHIPPED = "bmseg_bmsmm_net_segmentation"
FEW = ["--folds", "3", "--crop", "32", "--epochs", "1", "--iterations", "1", "--batch-size", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The shipped bundle with thin layers and no weights: what is tested is the walk."""
    root = tmp_path_factory.mktemp("bundle") / "thin_bmsmm_segmentation"
    shutil.copytree(shipped_bundles()[SHIPPED] / "configs", root / "configs")
    for name in ("train.json", "inference.json"):
        path = root / "configs" / name
        config = json.loads(path.read_text())
        config["network_def"]["network"]["widths"] = [2, 2, 4, 4, 8]
        path.write_text(json.dumps(config))
    return root


@pytest.fixture
def data(tmp_path) -> Path:
    """Six slices of three patients, 48 x 40 pixels: bone is a bright square, a lesion a brighter one in it."""
    root, rng = tmp_path / "archive", np.random.default_rng(4)
    rows = []
    for n in range(6):
        bone, lesion = np.zeros((40, 48), bool), np.zeros((40, 48), bool)
        bone[10:30, 10:34] = True
        lesion[14 + n : 20 + n, 16:24] = True
        image = np.clip(60 + 60 * bone + 90 * lesion + rng.normal(0, 6, bone.shape), 0, 255).astype(np.uint8)
        for kind, pixels in (("image", image), ("bone mask", bone * 255), ("lesion mask", lesion * 255)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / kind / f"s{n}.jpg", quality=95)
        rows.append((f"s{n}", f"P{n // 2}"))
    with (root / "slices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slice", "patient"), *rows])
    return root


def command(data: Path, out: Path, bundle: Path, *more: str) -> list[str]:
    return ["bmseg", str(data), "-o", str(out), "--bundle", str(bundle), "--trust-bundle", "--quiet", *FEW, *more]


def test_every_fold_is_trained_tested_and_kept(data, small, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(data, out, small, "--resamples", "20")) == 0
    assert "LEAKY" not in capsys.readouterr().out
    document = json.loads((out / "bmseg.json").read_text())
    assert document["protocol"] == "bmseg-patient" and document["data"] == "BM-Seg"
    assert "lesion pooled" in document["figures"][0] and "bone pooled" in document["figures"][0]
    table = (out / "tables" / "lesion_only_pooled.csv").read_text()
    assert "6 slices, 3 patients" in table and "91.07" in table, "every slice is tested once, beside the papers' rows"
    masks = sorted(path.stem for path in (out / small.name).rglob("lesion/*.png"))
    assert masks == [f"s{n}" for n in range(6)]
    assert Image.open(next((out / small.name).rglob("lesion/s0.png"))).size == (48, 40)

    weights = out / small.name / "fold_2" / "training" / "model.pt"
    before = weights.stat().st_mtime_ns
    assert main(command(data, out, small, "--resamples", "20")) == 0
    assert weights.stat().st_mtime_ns == before, "finished folds are not trained again"
    assert main([*command(data, out, small), "--seed", "5"]) == 2
    assert "seed was 0, is 5" in capsys.readouterr().err


def test_the_mask_that_is_written_lies_where_the_network_saw_the_lesion(data, small, tmp_path):
    """A network that answers "bright" must give back the bright square, not its mirror image."""
    from volseg.bmseg import BmSegOptions, _predict, _results
    from volseg.evaluation.bmseg import Split
    from volseg.inference.bundle import BundleFiles
    from volseg.io.bmseg import read_bmseg

    root = tmp_path / "bright_segmentation"
    shutil.copytree(small / "configs", root / "configs")
    config = json.loads((root / "configs" / "inference.json").read_text())
    config["network_def"] = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    net = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        net.weight[:] = 200.0
        net.bias[:] = -200.0 * (torch.tensor([90.0, 165.0]) / 127.5 - 1)  # bone is above grey 90, lesion above 165
    torch.save(net.state_dict(), tmp_path / "bright.pt")
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    files = BundleFiles(root, root.name, "0", metadata)
    found = read_bmseg(data)
    split = Split(0, (), (), tuple(range(6)))
    _predict(files, tmp_path / "bright.pt", found, split, tmp_path / "f", BmSegOptions(crop=32), "cpu", False, False)
    for result in _results(files, found, split, tmp_path / "f", False):
        assert result.lesion.dice > 0.9
        assert result.bone is not None and result.bone.dice > 0.9


def test_leaky_protocols_say_so_wherever_they_speak(data, small, tmp_path, capsys):
    out = tmp_path / "eh"
    assert main(command(data, out, small, "--protocol", "bmseg-eh", "--resamples", "20")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("bmseg-eh (LEAKY, paper-comparable)" in line and "lesion IoU" in line for line in lines)
    assert any("test slices belong to patients that were trained on" in line for line in lines)
    assert "LEAKY" in (out / "bmseg.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda root: (root / "slices.csv").unlink(), 2, r"patients-unknown: bmseg-patient: 6 of 6 slices"),
        (lambda root: _save(root / "image" / "s1.jpg", (40, 48, 3)), 1, "s1.jpg"),
        (lambda root: _save(root / "lesion mask" / "s2.jpg", (40, 50)), 1, "50 x 40 pixels, its image 48 x 40"),
    ],
    ids=["no patients", "RGB", "size"],
)
def test_what_cannot_be_used_is_refused_in_one_line_before_any_training(
    data, small, tmp_path, capsys, spoil, code, words
):
    spoil(data)
    assert main(command(data, tmp_path / "out", small)) == code
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and words in error
    assert not (tmp_path / "out" / small.name).exists()


def test_grey_pictures_saved_as_rgb_are_trained_on_when_that_is_allowed(data, small, tmp_path):
    for path in (data / "image").iterdir():
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey] * 3, -1)).save(path, quality=100, subsampling=0)
    assert main(command(data, tmp_path / "refused", small)) == 1
    assert main(command(data, tmp_path / "out", small, "--grey-rgb", "--resamples", "20")) == 0


def test_a_crop_the_network_cannot_take_is_refused(data, small, tmp_path, capsys):
    assert main([*command(data, tmp_path / "out", small), "--crop", "100"]) == 2
    assert "--crop 100: a multiple of 16" in capsys.readouterr().err


def test_the_check_names_every_problem_and_trains_nothing(data, tmp_path, capsys):
    assert main(["bmseg", str(data), "--check", "--quiet"]) == 0
    (data / "bone mask" / "s3.jpg").unlink()
    assert main(["bmseg", str(data), "--check", "--quiet"]) == 1
    assert "s3" in capsys.readouterr().out


def test_the_generator_answers_on_the_command_line(tmp_path, capsys):
    assert main(["bmseg-synth", "-o", str(tmp_path / "toy"), "--patients", "1", "--slices", "2", "--quiet"]) == 0
    assert "2 SYNTHETIC slices" in capsys.readouterr().out
    assert main(["bmseg", str(tmp_path / "toy"), "--check", "--quiet"]) == 0


@pytest.mark.parametrize("name", ["bmseg_bmsmm_net_segmentation", "bmseg_mfp_deeplabv3plus_segmentation"])
def test_training_reads_pictures_and_volumes_alike(name, data):
    """train.json takes a folder of pictures as it takes CT cases: same shapes, same range."""
    root = shipped_bundles()[name]
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "train.json"))
    parser["bundle_root"], parser["roi_size"], parser["cache_rate"] = str(root), [32, 32], 0.0
    item = {key: str(data / kind / "s0.jpg") for key, kind in
            (("image", "image"), ("bone", "bone mask"), ("label", "lesion mask"))}  # fmt: skip
    parser["train_cases"], parser["val_cases"] = [item], [item]
    crop = parser.get_parsed_content("train#dataset")[0][0]
    channels, neighbours = (2, 4) if "bmsmm" in name else (1, 0)
    assert crop["image"].shape == (1 + neighbours, 32, 32) and crop["label"].shape == (channels, 32, 32)
    assert crop["image"].min() >= -1 and crop["image"].max() <= 1
    assert set(np.unique(crop["label"])) <= {0, 1} and crop["label"].any()
    whole = parser.get_parsed_content("validate#dataset")[0]
    assert whole["image"].shape == (1, 48, 40, 1) and whole["label"].shape == (channels, 48, 40, 1)


@pytest.fixture(scope="module")
def ct_training(tmp_path_factory):
    """BMSMM-Net's train.json on one phantom block whose only lesion has the number 256."""
    folder = tmp_path_factory.mktemp("cases")
    options = SynthOptions(n=1, seed=5, lesions=(1, 1), distractors=(0, 0), healthy=0.0, block_mm=72.0)
    write_cases({PHANTOM: None}, folder, options, progress=False)
    (case,) = listed_cases(str(folder), "training")
    label = nib.load(case["label"])
    nib.save(nib.Nifti1Image((np.asarray(label.dataobj) > 0).astype(np.uint16) * 256, label.affine), case["label"])
    parser = ConfigParser()
    parser.read_config(str(shipped_bundles()[SHIPPED] / "configs" / "train.json"))
    parser["train_cases"], parser["val_cases"], parser["cache_rate"] = [case], [case], 0.0
    parser["network_def#network#widths"], parser["roi_size"], parser["ema_decay"] = [2, 2, 4, 4, 8], [32, 32], 0.0
    return parser


def test_validation_shows_the_network_a_slices_neighbours_as_training_and_inference_do(ct_training):
    network, seen = ct_training.get_parsed_content("network"), []
    network.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = ct_training.get_parsed_content("validate#dataset")[0]["image"]
    with torch.no_grad():
        ct_training.get_parsed_content("validate#inferer")(image[None], network.eval())
    slices = torch.cat(seen)
    assert slices.shape[1] == 5
    apart = (slices[:, 2] - slices[:, 1]).abs().amax((1, 2))
    assert (apart > 0).float().mean() > 0.9, "a window of one slice would be its own neighbour"


def test_every_number_of_a_lesion_is_learnt_as_lesion(ct_training):
    torch.manual_seed(0)
    crops = [ct_training.get_parsed_content("train#dataset")[0][0] for _ in range(8)]
    assert sum(bool(crop["label"][1].any()) for crop in crops) >= 3, "six in ten crops are laid about a lesion"


def _save(path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.zeros(shape, np.uint8)
    if len(shape) == 3:
        pixels[..., 0] = 200
    Image.fromarray(pixels).save(path, quality=95)
