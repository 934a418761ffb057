"""One CT, NIfTI to mask, by one pipeline: `chest_run.py CONTENDER CT OUT`. Prints seconds, memory and windows as JSON.

All use the shipped network at its own spacing and window, overlap 0.5, two windows at a time, each shown once
(`volseg predict` shows the mirrored ones too) and resampled without averaging (`volseg predict` averages, MONAI's
Spacingd cannot). Contenders:

    monai                as MONAI's bundles write it: LoadImaged, Orientationd, Spacingd, SlidingWindowInferer,
                         Invertd, argmax, SaveImaged; volseg's own bone channels between, for the network wants them
    volseg               volseg's engine as `volseg predict` lays its windows (even steps over the bone)
    volseg_same_windows  volseg's engine at MONAI's places, windows that hold bone: bone sees MONAI's windows but for
                         those that together give it less than SPARE of its weight
    volseg_same_windows_bf16  the same in bfloat16, with less to spare

`network_s` is the time windows spend in the network, divided by the number at work at once.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    Spacingd,
)
from resident import peak_gb

from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
from volseg.inference.source_grid import SourceGridInferer
from volseg.inference.workers import workers_for
from volseg.io import read_study, write_nifti
from volseg.transforms.bone_context import BoneContextd
from volseg.transforms.ct import BoneMaskd
from volseg.transforms.invert import resample_to_grid
from volseg.transforms.metatensor import to_metatensor

OVERLAP, BATCH = 0.5, 2
AS_SPACINGD = {"preprocessing#transforms#1#antialias": False}
# Dice with all windows visited, within 5 mm of bone (2026-11-21, windows of MONAI's layout: 218 of 320 hold bone):
# float32 .9998 at .02 (186 windows), .9983 at .05 (169), .9973 at .2 (156), .9911 at .3 (139);
# bfloat16 .9910 at 0, .9906 at .1 (166), .9898 at .2.
SPARE = {"float32": 0.2, "bfloat16": 0.1}


class Counted(torch.nn.Module):
    """The network, its windows and the seconds they took."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        y = self.network(x.as_tensor() if isinstance(x, MetaTensor) else x)
        self.calls.append((len(x), time.perf_counter() - start))
        return y

    def figures(self, workers: int) -> dict[str, float]:
        return {"windows": sum(n for n, _ in self.calls), "network_s": sum(s for _, s in self.calls) / workers}


def by_volseg(ct: Path, out: Path, **settings: Any) -> dict[str, float]:
    clock = [time.perf_counter()]
    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE), overrides=AS_SPACINGD)
    volume = read_study(ct).volumes["CT"]
    clock.append(time.perf_counter())
    data = bundle.preprocessing({"image": to_metatensor(volume)})
    clock.append(time.perf_counter())
    network = Counted(bundle.network)
    inferer = SourceGridInferer(bundle.inferer.roi_size, BATCH, OVERLAP, **settings)
    with torch.inference_mode():
        labels = inferer(data["image"][None], network, occupancy=data["bone"][None])
    clock.append(time.perf_counter())
    write_nifti(out, labels[0, 0].numpy(), volume.affine, dtype=np.uint8)
    clock.append(time.perf_counter())
    # Where the bone is, for the comparison only (inside the measured time).
    bone = resample_to_grid(data["bone"], affine=volume.affine, shape=volume.voxels.shape, mode="nearest")
    write_nifti(out.with_name("bone.nii.gz"), np.asarray(bone[0]), volume.affine, dtype=np.uint8)
    clock.append(time.perf_counter())
    stages = ("reading_s", "preprocessing_s", "windows_s", "writing_s", "bone_for_comparison_s")
    spent = {name: b - a for name, (a, b) in zip(stages, itertools.pairwise(clock), strict=True)}
    return network.figures(workers_for(torch.device("cpu"), BATCH)) | spent


def by_monai(ct: Path, out: Path) -> dict[str, float]:
    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE))
    config = json.loads((bundle.files.root / "configs" / "inference.json").read_text())
    preprocessing = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(config["spacing_mm"],) * 3, mode="bilinear"),
            BoneMaskd("image", "bone"),
            BoneContextd("image", "bone", windows_hu=[config["window_hu"], config["marrow_window_hu"]]),
        ]
    )
    postprocessing = Compose(
        [
            Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=out.parent, output_postfix="", output_dtype=np.uint8, separate_folder=False,
                       resample=False, print_log=False, savepath_in_metadict=True,
                       output_name_formatter=lambda *_: {"filename": out.name}),
        ]
    )  # fmt: skip
    batch = list_data_collate([preprocessing({"image": str(ct)})])
    network = Counted(bundle.network)
    inferer = SlidingWindowInferer(bundle.inferer.roi_size, BATCH, OVERLAP, mode="gaussian")
    with torch.inference_mode():
        batch["pred"] = inferer(batch["image"], network)
    saved = [postprocessing(item) for item in decollate_batch(batch)]
    written = Path(saved[0]["pred"].meta["saved_to"])
    if written != out:
        written.rename(out)
    return network.figures(1)


def main() -> None:
    name, ct, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    start = time.perf_counter()
    if name == "monai":
        figures = by_monai(ct, out)
    else:
        precision = "bfloat16" if name.endswith("bf16") else "float32"
        places: dict[str, Any] = {"layout": "monai", "spare": SPARE[precision]} if "same_windows" in name else {}
        figures = by_volseg(ct, out, precision=precision, **places)
    seconds = time.perf_counter() - start
    peak = peak_gb()
    print(json.dumps({"seconds": seconds, "peak_gb": peak} | figures))


if __name__ == "__main__":
    main()
