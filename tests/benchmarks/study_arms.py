"""The study's networks, and what is done to each alike: trained on site B, frozen into a bundle, asked about each case.

SegMamba; its twin whose scan is a depthwise convolution, of nearly as many weights ("no-Mamba twin");
MONAI's DynUNet of similar size. One recipe: crops, augmentation, steps, schedule, seed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from volseg.inference.bundle import DEFAULT_BUNDLE, BundleFiles, LoadedBundle, find_bundle, load_bundle
from volseg.io import read_study, write_nifti
from volseg.io.cohort import CohortCase
from volseg.networks import SegMamba
from volseg.ops.depthwise_conv3d import depthwise_conv3d
from volseg.pipeline import analyse_study
from volseg.report.tables import write_result_json
from volseg.train import TrainOptions, train_bundle

# What the shipped bundle's preprocessing makes of a CT.
IN_CHANNELS = find_bundle(DEFAULT_BUNDLE).metadata["network_data_format"]["inputs"]["image"]["num_channels"]


@dataclass(frozen=True)
class Recipe:
    """The same for every arm. `dims`, `hidden_dim`, `depths` are SegMamba's, `filters` DynUNet's."""

    epochs: int
    iterations: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    roi: int
    overlap: float
    dims: tuple[int, int, int, int]
    hidden_dim: int
    depths: tuple[int, int, int, int]
    filters: tuple[int, ...]
    false_positives: float = 2.0


class ConvLayer(nn.Module):
    """What stands where the scan stood: gate * depthwise convolution, between the same two projections.

    (B, C, X, Y, Z) -> same. In Mamba's block three scans and their small convolutions lie there (2 C channels).
    """

    def __init__(self, channels: int, kernel_size: int = 5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.in_proj = nn.Conv3d(channels, 4 * channels, 1, bias=False)
        self.mix = nn.Conv3d(2 * channels, 2 * channels, kernel_size, padding=kernel_size // 2, groups=2 * channels)
        self.out_proj = nn.Conv3d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        inside, gate = self.in_proj(normed).chunk(2, dim=1)
        mixed = depthwise_conv3d(inside, self.mix.weight, self.mix.bias)
        return x + self.out_proj(nn.functional.silu(mixed) * nn.functional.silu(gate))


class NoMambaTwin(SegMamba):
    """SegMamba whose every Mamba layer is a `ConvLayer`: same stages, same skips, same decoder."""

    def __init__(self, in_channels: int, out_channels: int, **arguments: Any) -> None:
        super().__init__(in_channels, out_channels, **arguments)
        for stage, channels, depth in zip(self.stages, arguments["dims"], arguments["depths"], strict=True):
            stage.layers = nn.Sequential(*(ConvLayer(channels) for _ in range(depth)))


def network_defs(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Arm -> the `network_def` that its train.json and inference.json get."""
    base = {"in_channels": IN_CHANNELS, "out_channels": 2, "dims": list(recipe.dims), "hidden_dim": recipe.hidden_dim}
    levels = len(recipe.filters)
    return {
        "SegMamba": {"_target_": "volseg.networks.SegMamba", **base, "depths": list(recipe.depths)},
        "no-Mamba twin": {"_target_": "study_arms.NoMambaTwin", **base, "depths": list(recipe.depths)},
        "DynUNet": {
            "_target_": "monai.networks.nets.DynUNet", "spatial_dims": 3, "in_channels": IN_CHANNELS, "out_channels": 2,
            "kernel_size": [3] * levels, "strides": [1] + [2] * (levels - 1),
            "upsample_kernel_size": [2] * (levels - 1), "filters": list(recipe.filters), "res_block": True,
        },
    }  # fmt: skip


def parameters_of(definition: Mapping[str, Any]) -> int:
    """How many weights a `network_def` builds."""
    parser = ConfigParser({"network": dict(definition)})
    network: nn.Module = parser.get_parsed_content("network")
    return sum(p.numel() for p in network.parameters())


def slug(words: str) -> str:
    return words.lower().replace(" ", "_").replace("-", "_")


def train_arm(
    definition: Mapping[str, Any], seed: int, recipe: Recipe, data: Path, out: Path, say: Callable[[str], None]
) -> Path:
    """The shipped bundle's own train.json with this network; resumable. Returns the weights."""
    options = TrainOptions(
        epochs=recipe.epochs,
        iterations_per_epoch=recipe.iterations,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        seed=seed,
        overrides={"network_def": dict(definition), "roi_size": [recipe.roi] * 3},
    )
    return train_bundle(find_bundle(DEFAULT_BUNDLE), data, out, options, say=say)


def freeze_arm(
    definition: Mapping[str, Any], weights: Path, heads: Mapping[str, Any], recipe: Recipe, folder: Path
) -> BundleFiles:
    """A bundle of this arm: the shipped configs with its network, its weights, and the origin heads of site B.

    Masks are cut at probability .5 and every lesion keeps its score: the operating score is frozen at site B.
    """
    shipped = find_bundle(DEFAULT_BUNDLE)
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "configs").mkdir(exist_ok=True)
    inference = json.loads((shipped.root / "configs" / "inference.json").read_text(encoding="utf-8"))
    inference |= {"network_def": dict(definition), "threshold": 0.5, "seed_threshold": 0.5}
    inference["inferer"] |= {"roi_size": [recipe.roi] * 3, "overlap": recipe.overlap, "progress": False}
    (folder / "configs" / "inference.json").write_text(json.dumps(inference, indent=1), encoding="utf-8")
    metadata = dict(shipped.metadata) | dict(heads) | {"notice": "a study's arm, trained on synthetic cases"}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=1), encoding="utf-8")
    shutil.copyfile(weights, folder / "models" / "model.pt")
    return find_bundle(folder, trust=True)


def predictor(files: BundleFiles) -> Callable[[CohortCase, Path], None]:
    """(case, folder) -> lesions.nii.gz and result.json there, as `volseg predict` writes them, without the pictures."""
    loaded: list[LoadedBundle] = []

    def predict(case: CohortCase, folder: Path) -> None:
        if not loaded:
            loaded.append(load_bundle(files))
        torch.manual_seed(0)
        result = analyse_study(read_study(case.image, name=case.name), loaded[0])
        folder.mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "lesions.nii.gz", result.instances, result.image.affine, dtype=np.uint16)
        write_result_json(result, folder / "result.json", files=["lesions.nii.gz", "result.json"])

    return predict
