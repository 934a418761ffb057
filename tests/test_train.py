"""`volseg train`: what is killed goes on, and ends in the same bits; what is wrong is said in one line."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from ignite.engine import Engine

from volseg.cli import main
from volseg.errors import InputError
from volseg.synth import PHANTOM, SynthOptions, write_cases
from volseg.train import dataset_folder, finished_epochs
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
