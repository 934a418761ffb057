"""Two processes (torchrun, gloo) take the steps of one process with the doubled batch, through the bundle's configs.

The law holds for a loss that is a mean over the samples of a batch, and is tested so: the same crops, dealt to ranks,
Dice and cross-entropy per sample, without weights, SGD. (The bundle's own loss pools Dice and weights over a process's
batch, and AdamW turns a rounding error in a gradient near zero into a whole step: close, not equal.)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from volseg.synth import PHANTOM, SynthOptions, write_cases

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "bone_ct_segmamba_segmentation"
NET = {
    "_target_": "volseg.networks.SegMamba", "in_channels": 1, "out_channels": 2, "dims": [4, 8, 8, 8],
    "depths": [1, 1, 1, 1], "hidden_dim": 8,
}  # fmt: skip
PER_SAMPLE = {
    "_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "include_background": False, "batch": False,
}  # fmt: skip
STEPS = 3


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Six crops with lesions, for 3 steps of 2; and a data set for the configs to find."""
    folder = tmp_path_factory.mktemp("data")
    options = SynthOptions(n=1, seed=5, lesions=(1, 1), distractors=(0, 0), healthy=0.0, block_mm=40.0)
    write_cases({PHANTOM: None}, folder, options, progress=False)
    torch.manual_seed(0)
    data = []
    for _ in range(2 * STEPS):
        image = torch.rand(1, 32, 32, 32)
        data.append({"image": image, "label": (image > 0.9).float()})
    torch.save(data, folder / "crops.pt")
    return folder


@pytest.fixture
def unused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(crops, out, *, batch_size, sampler, processes, port):
    configs = [str(BUNDLE / "configs" / "train.json")]
    if processes > 1:
        configs.append(str(BUNDLE / "configs" / "multi_gpu_train.json"))
    overrides = {
        "bundle_root": str(BUNDLE), "dataset_dir": str(crops), "ckpt_dir": str(out), "device": "$torch.device('cpu')",
        "epochs": 1, "iterations_per_epoch": STEPS, "batch_size": batch_size, "network_def": NET, "ema_decay": 0.5,
        "train#dataset": {"_target_": "Dataset", "data": f"$torch.load({str(crops / 'crops.pt')!r})"},
        "train#sampler": sampler, "loss": PER_SAMPLE,
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.05, "momentum": 0.9},
    }  # fmt: skip
    (out / "overrides.json").write_text(json.dumps(overrides))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    start = [sys.executable] if processes == 1 else launch
    env = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [*start, "-m", "monai.bundle", "run", "--config_file", str([*configs, str(out / "overrides.json")])]
    return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_equal_one_with_the_doubled_batch(crops, tmp_path, unused_port):
    in_order = {"_target_": "torch.utils.data.SequentialSampler", "data_source": "@train#dataset"}
    dealt = {"_target_": "DistributedSampler", "dataset": "@train#dataset", "even_divisible": True, "shuffle": False}
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    runs = [
        run(crops, one, batch_size=2, sampler=in_order, processes=1, port=0),
        run(crops, two, batch_size=1, sampler=dealt, processes=2, port=unused_port),
    ]
    for process in runs:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said[-3000:]
    first, second = (torch.load(folder / "training_state.pt", weights_only=True) for folder in (one, two))
    assert first["iteration"] == second["iteration"] == STEPS
    moved = 0.0
    for part in (lambda s: s["model"], lambda s: s["ema"]["weights"]):
        assert part(first).keys() == part(second).keys()
        for name, value in part(first).items():
            assert torch.allclose(value, part(second)[name], rtol=0, atol=1e-5), name
            moved = max(moved, float((value - first["ema"]["weights"][name]).abs().max()))
    assert moved > 1e-3, "weights that had not moved would agree, too"
