"""One CT, file to mask, by one pipeline: `chest_run.py volseg|monai CT OUT`. Prints seconds and peak memory as JSON.

Both use the shipped network in float32 at its own spacing and window, overlap 0.5. `monai` is the pipeline as MONAI's
bundles write it: LoadImaged, Orientationd, Spacingd, ScaleIntensityRanged, SlidingWindowInferer, Invertd, argmax,
SaveImaged.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

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
    ScaleIntensityRanged,
    Spacingd,
)

from volseg.inference.bundle import DEFAULT_BUNDLE, find_bundle, load_bundle
from volseg.inference.source_grid import SourceGridInferer
from volseg.io import read_study, write_nifti
from volseg.transforms.invert import resample_to_grid
from volseg.transforms.metatensor import to_metatensor

OVERLAP = 0.5


def by_volseg(ct: Path, out: Path) -> None:
    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE))
    volume = read_study(ct).volumes["CT"]
    data = bundle.preprocessing({"image": to_metatensor(volume)})
    inferer = SourceGridInferer(bundle.inferer.roi_size, 2, OVERLAP)
    with torch.inference_mode():
        labels = inferer(data["image"][None], bundle.network, occupancy=data["bone"][None])
    write_nifti(out, labels[0, 0].numpy(), volume.affine, dtype=np.uint8)
    # Where windows were laid, for the comparison only.
    bone = resample_to_grid(data["bone"], affine=volume.affine, shape=volume.voxels.shape, mode="nearest")
    write_nifti(
        out.with_name(out.name.replace(".nii", "_bone.nii")), np.asarray(bone[0]), volume.affine, dtype=np.uint8
    )


def by_monai(ct: Path, out: Path) -> None:
    bundle = load_bundle(find_bundle(DEFAULT_BUNDLE))
    config = json.loads((bundle.files.root / "configs" / "inference.json").read_text())
    low, high = config["window_hu"]
    preprocessing = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(config["spacing_mm"],) * 3, mode="bilinear"),
            ScaleIntensityRanged("image", low, high, -1.0, 1.0, clip=True),
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
    inferer = SlidingWindowInferer(bundle.inferer.roi_size, 2, OVERLAP, mode="gaussian")
    with torch.inference_mode():
        batch["pred"] = inferer(
            batch["image"], lambda x: bundle.network(x.as_tensor() if isinstance(x, MetaTensor) else x)
        )
    saved = [postprocessing(item) for item in decollate_batch(batch)]
    written = Path(saved[0]["pred"].meta["saved_to"])
    if written != out:
        written.rename(out)


def main() -> None:
    name, ct, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    start = time.perf_counter()
    {"volseg": by_volseg, "monai": by_monai}[name](ct, out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": seconds, "peak_gb": peak}))


if __name__ == "__main__":
    main()
