"""`volseg train`: what is killed goes on, and ends in the same bits; what is wrong is said in one line."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from importlib.util import find_spec

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine

from volseg.cli import main
from volseg.errors import InputError, UsageError
from volseg.inference.bundle import shipped_bundles
from volseg.synth import PHANTOM, SynthOptions, write_cases
from volseg.train import dataset_folder, finished_epochs
from volseg.training.identity import identity_of, refuse_another
from volseg.training.logs import attach_mlflow

SMALL_NET = '{"_target_": "volseg.networks.SegMamba", "in_channels": 3, "out_channels": 2, "dims": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "hidden_dim": 8}'  # noqa: E501


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    options = SynthOptions(n=2, seed=5, lesions=(1, 2), distractors=(0, 0), healthy=0.0, block_mm=64.0)
    write_cases({PHANTOM: None}, folder, options, progress=False)
    return folder


def command(cases, out, epochs=3):
    return [
        "train", "bone_ct_segmamba_segmentation", "--data", str(cases), "-o", str(out), "--epochs", str(epochs),
        "--iterations", "6", "--batch-size", "1", "--seed", "11", "--device", "cpu",
        "--set", "roi_size=[32,32,32]", "--set", f"network_def={SMALL_NET}", "--ema", "0.9",
    ]  # fmt: skip


def test_a_run_killed_in_the_middle_ends_in_the_bits_of_one_that_was_not(cases, tmp_path):
    # The same number of threads each time, and one: torch takes MKL's number where that is set, and not OpenMP's.
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def start(out):
        line = [sys.executable, "-m", "volseg.cli", *command(cases, out)]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, env=env)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    process = start(killed)
    deadline = time.time() + 240
    while finished_epochs(killed / "training_state.pt") < 1 and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished_epochs(killed / "training_state.pt") >= 1
    assert not (killed / "model.pt").exists(), "killed before the end, or this proves nothing"
    assert start(killed).wait() == 0
    one, other = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_fold_is_validated_and_what_was_averaged_is_saved(cases, tmp_path):
    out = tmp_path / "out"
    watched = ["--tensorboard"] if find_spec("tensorboard") else []
    extra = ["--folds", "2", "--fold", "1", "--set", "val_interval=1", *watched]
    assert main([*command(cases, out, epochs=1), *extra]) == 0
    fold = json.loads((out / "fold.json").read_text())
    assert len(fold["training"]) == len(fold["validation"]) == 1
    assert (out / "tensorboard").is_dir() == bool(watched)
    state = torch.load(out / "training_state.pt", weights_only=True)
    saved, best = (torch.load(out / name, weights_only=True) for name in ("model.pt", "model_best.pt"))
    for name, value in saved.items():
        assert torch.equal(value, state["ema"]["weights"][name])
        assert torch.equal(value, best.get("model", best)[name]), "validated with the averaged weights, too"
    assert any(not torch.equal(value, state["model"][name]) for name, value in saved.items())
    assert state["best"]["best_metric_epoch"] == 1, "the saver in the state is the one that the evaluator has"
    assert main([*command(cases, out, epochs=1), "--folds", "2", "--fold", "0"]) == 2


def test_a_logger_that_is_not_installed_is_one_clear_line(cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("volseg.training.logs.find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        assert main([*command(cases, tmp_path / "out"), f"--{name}"]) == 2
        assert f"pip install {name}" in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("mlflow"), reason="MLflow is an extra: pip install volseg[tracking]")
def test_mlflow_gets_the_loss_of_every_iteration(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trainer = Engine(lambda engine, batch: [{"loss": torch.tensor(float(batch))}])
    trainer.state.metrics = {}
    attach_mlflow(trainer, None, tmp_path, "x")
    trainer.run([1, 2, 3], max_epochs=2)
    with sqlite3.connect(tmp_path / "mlruns.db") as database:
        kept = database.execute("select value from metrics where key = 'train_loss' order by step").fetchall()
    assert [value for (value,) in kept] == [1, 2, 3, 1, 2, 3]


def test_a_finished_training_is_not_begun_again(cases, tmp_path, capsys):
    assert main(command(cases, tmp_path / "out", epochs=1)) == 0
    before = (tmp_path / "out" / "model.pt").stat().st_mtime_ns
    assert main(command(cases, tmp_path / "out", epochs=1)) == 0
    assert "already trained for 1 epochs" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.pt").stat().st_mtime_ns == before


RCNN = "bone_ct_mask_rcnn_detection"


def test_more_epochs_and_another_rate_go_on_and_another_training_is_refused(cases, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(cases, out, epochs=1)) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    other_cases = tmp_path / "other"
    shutil.copytree(cases, other_cases)
    listed = json.loads((other_cases / "datalist.json").read_text())
    (other_cases / "datalist.json").write_text(json.dumps(listed | {"training": listed["training"][:1]}))
    same = command(cases, out, epochs=1)
    for asked, told in (
        (["train", RCNN, *same[2:]], f"bundle was bone_ct_segmamba_segmentation, is {RCNN}"),
        ([*same, "--seed", "99"], "seed was 11, is 99"),
        ([*same, "--from", "shipped"], "other finetune_from"),
        ([*same, "--iterations", "5"], "iterations_per_epoch was 6, is 5"),
        ([*same, "--set", "roi_size=[48,48,48]"], "roi_size was the default, is [48, 48, 48]"),
        (command(other_cases, out, epochs=1), "other training_cases"),
    ):
        capsys.readouterr()
        assert main(asked) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith(f"volseg: training-of-another: {out}") and told in said and "\n" not in said
        assert RCNN in said or said.count("; ") == 1, "what differs and the way out; bundles differ in their defaults"
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    moved = tmp_path / "moved"
    shutil.copytree(cases, moved)
    assert main([*command(moved, out, epochs=2), "--learning-rate", "1e-5", "--set", "num_workers=0"]) == 0
    assert finished_epochs(out / "training_state.pt") == 2
    state = torch.load(out / "training_state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["initial_lr"] == 1e-5
    assert state["lr_scheduler"]["t_total"] == state["lr_scheduler"]["last_epoch"] == 12

    (out / "training.json").unlink()  # as an older version left it
    assert main([*command(cases, out, epochs=2), "--seed", "99"]) == 0
    assert "already trained for 2 epochs" in capsys.readouterr().out
    assert not (out / "training.json").exists(), "how it was begun is not known"


def test_a_request_that_failed_before_its_first_epoch_binds_nobody(cases, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*command(cases, out, epochs=1), "--set", "loss=$float('blue')"]) == 1
    assert "'blue'" in capsys.readouterr().err
    assert "loss" in json.loads((out / "training.json").read_text())["overrides"]
    assert main(command(cases, out, epochs=1)) == 0
    assert "loss" not in json.loads((out / "training.json").read_text())["overrides"]


def test_what_stands_in_the_config_anyway_is_no_override():
    known = {"seed": 7, "roi_size": [32, 32], "ema_decay": 0.5, "finetune_from": ""}
    plain = identity_of("b", {"training": []}, {}, known)
    assert plain["overrides"] == {} and plain["seed"] == 7
    asked = {"seed": 7, "roi_size": (32, 32), "epochs": 9, "train::dataset::cache_rate": 0, "device": "$1"}
    assert identity_of("b", {"training": []}, asked, known) == plain
    assert identity_of("b", {"training": []}, {"network::dropout": 0.1}, known)["overrides"] == {"network#dropout": 0.1}


def test_cases_count_by_name_in_any_order_and_weights_by_content(tmp_path):
    def of(folder, names, weights=None):
        listed = [{"image": f"/{folder}/imagesTr/{name}", "label": f"/{folder}/labelsTr/{name}"} for name in names]
        return identity_of("b", {"training": listed}, {"finetune_from": str(weights)} if weights else {}, {})

    assert of("here", "ab") == of("there/below", "ba") != of("here", "ac")
    weights, copy = tmp_path / "one.pt", tmp_path / "two.pt"
    weights.write_bytes(b"1")
    copy.write_bytes(b"1")
    assert of("here", "ab", weights) == of("here", "ab", copy) != of("here", "ab")
    copy.write_bytes(b"2")
    assert of("here", "ab", weights) != of("here", "ab", copy)


def test_an_identity_that_cannot_be_read_is_refused_in_words(tmp_path):
    identity = identity_of("b", {"training": []}, {}, {})
    for broken in ("{", "[]", "{}"):
        (tmp_path / "training.json").write_text(broken)
        with pytest.raises(InputError, match="state-broken"):
            refuse_another(tmp_path, identity)
    (tmp_path / "training.json").write_text(json.dumps(identity | {"seed": 3}))
    with pytest.raises(UsageError, match="seed was 3, is the default"):
        refuse_another(tmp_path, identity)


@pytest.mark.parametrize("name", sorted(shipped_bundles()))
def test_every_bundle_keeps_its_best_score_in_the_state(name):
    config = json.loads((shipped_bundles()[name] / "configs" / "train.json").read_text())
    states = [one["state"] for one in config["train"]["handlers"] if one["_target_"].endswith(".ResumableState")]
    assert [state["best"] for state in states] == ["@validate#handlers#1"]
    assert config["validate"]["handlers"][1]["_target_"] == "volseg.training.checkpoint.BestSaver"


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (["--set", "rio_size=[32,32,32]"], "override-unknown"),
        (["--from", "nowhere.pt"], "weights-missing"),
        (["--fold", "1"], "fold-wrong"),
        (["--folds", "9", "--fold", "1"], "folds-too-many"),
    ],
)
def test_a_wrong_request_is_one_line(cases, tmp_path, capsys, extra, code):
    assert main([*command(cases, tmp_path / "out"), *extra]) in (1, 2)
    assert code in capsys.readouterr().err


def test_data_that_is_not_there_or_has_another_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        dataset_folder(tmp_path / "nowhere")
    other = tmp_path / "cases.json"
    other.write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match="is called"):
        dataset_folder(other)


@pytest.mark.parametrize(
    ("extra", "code", "told"),
    [
        (["--set", "roi_size=[30,30,30]"], 1, "volseg: "),
        (["--set", 'network_def={"_target_": "volseg.networks.SegMamba", "in_chanels": 3}'], 1, "training-failed: "),
        (["--set", "dataset_dir=/tmp"], 2, "override-unknown: dataset_dir is given by --data"),
        (["--set", "ckpt_dir=/tmp"], 2, "override-unknown: ckpt_dir is given by -o"),
        (["--seed", "-1"], 2, "seeds count from 0"),
        (["--ema", "1.5"], 2, "from 0 to below 1"),
        (["--learning-rate", "0"], 2, "above 0"),
    ],
)
def test_what_training_fails_with_is_one_line(cases, tmp_path, capsys, extra, code, told):
    try:
        assert main([*command(cases, tmp_path / "out", epochs=1), *extra]) == code
    except SystemExit as usage:  # argparse refuses by itself
        assert usage.code == code
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert told in line and "Traceback" not in line
    assert not (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize("section", ["training", "validation"])
def test_a_case_without_a_label_or_off_its_scan_is_named_in_one_line(cases, tmp_path, capsys, section):
    shutil.copytree(cases, tmp_path / "data")
    path = tmp_path / "data" / "datalist.json"
    whole = json.loads(path.read_text())
    bare = {key: value for key, value in whole["training"][0].items() if key != "label"}
    path.write_text(json.dumps(whole | {section: [bare]}))
    assert main(command(tmp_path / "data", tmp_path / "out", epochs=1)) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"volseg: label-missing: 1 {section} case") and "\n" not in said
    label = tmp_path / "data" / whole["training"][0]["label"]
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([-1, 1, 1, 1])), label)
    path.write_text(json.dumps(whole | {section: [whole["training"][0]]}))
    assert main([*command(tmp_path / "data", tmp_path / "out", epochs=1), "--set", "cache_rate=0.0"]) == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("volseg: label-grid: label ")


def test_an_output_that_is_a_file_is_refused(cases, tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main(command(cases, tmp_path / "out")) == 2
    assert "output-not-a-folder" in capsys.readouterr().err
