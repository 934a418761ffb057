"""How many of the held-out lesions could be found by brightness alone, by somebody who knows each one's exact shape.

    python tests/benchmarks/bench_contrast.py --shared ../shared --out tests/benchmarks/results

The cases are those of bench_lesions.py. Of every lesion the observer is given the mask, and not where it lies:
they push the mask through all bone of the untouched CT and compare the mean HU of bone under it with that of bone in
the 3 mm around it. `false_places` says how often, in that CT, healthy bone differs by as much as the lesion does, in
volumes of the lesion: at 2 or less it stands out by brightness at two false marks. A network does not know the shape,
but sees texture, margins and anatomy, so this bounds nothing; it tells how much of a sensitivity brightness explains.
Observers who know the signal: Barrett and Myers, Foundations of Image Science (2004), chapter 13.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_lesions import SEED, held_out, held_out_cases
from monai.transforms import Compose
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal import fftconvolve

from volseg.geometry import widened
from volseg.transforms.ct import BoneMaskd, RasIsotropicd
from volseg.transforms.metatensor import to_metatensor
from volseg.types import Volume

SPACING_MM = 1.5
SHELL = 2  # voxels, 3 mm
HU = (-200.0, 1000.0)  # what the networks see
FALSE_PLACES = (2, 5, 20)


def on_grid(volume: Volume, *, mode: str = "bilinear") -> NDArray:
    """A volume at 1.5 mm, RAS+."""
    move = RasIsotropicd(keys="image", spacing_mm=SPACING_MM, mode=mode, antialias=mode == "bilinear")
    return np.asarray(move({"image": to_metatensor(volume)})["image"][0])


def bone_of(volume: Volume) -> NDArray:
    """Where the observer looks: the bone mask at 1.5 mm, as in preprocessing."""
    steps = Compose([RasIsotropicd(keys="image", spacing_mm=SPACING_MM, antialias=True),
                     BoneMaskd(image_key="image", mask_key="bone")])  # fmt: skip
    return np.asarray(steps({"image": to_metatensor(volume)})["bone"][0]) > 0


def observed(before: NDArray, after: NDArray, bone: NDArray, lesion: NDArray) -> dict[str, float]:
    """One lesion's difference in HU from the 3 mm around it, and how often healthy bone differs by as much."""
    box = widened(ndimage.find_objects(lesion.astype(np.uint8))[0], np.full(3, SHELL), lesion.shape)
    inside = lesion[box]
    shell = ndimage.binary_dilation(inside, iterations=SHELL) & ~inside
    inside_bone, shell_bone = inside & bone[box], shell & bone[box]
    volume_ml = float(lesion.sum() * SPACING_MM**3 / 1000)
    if not inside_bone.any() or not shell_bone.any():
        return {"ml": round(volume_ml, 2), "hu": float("nan"), "false_places": float("inf")}
    difference = after[box][inside_bone].mean() - after[box][shell_bone].mean()

    def summed(voxels: NDArray, shape: NDArray) -> NDArray:
        return fftconvolve(voxels.astype(np.float32), shape[::-1, ::-1, ::-1].astype(np.float32), mode="same")

    n_inside, n_shell = summed(bone, inside), summed(bone, shell)
    # A place counts where as much bone lies under the mask as under the lesion itself, within a tenth.
    alike = (n_inside >= 0.9 * inside_bone.sum() - 0.5) & (n_shell >= max(0.5 * shell_bone.sum(), 1))
    masked = before * bone
    healthy = (summed(masked, inside)[alike] / n_inside[alike]) - (summed(masked, shell)[alike] / n_shell[alike])
    share = float((np.abs(healthy - healthy.mean()) >= abs(difference - healthy.mean())).mean())
    return {
        "ml": round(volume_ml, 2),
        "hu": round(float(difference), 1),
        "healthy_sd_hu": round(float(healthy.std()), 1),
        "false_places": round(share * float(bone.sum()) / float(lesion.sum()), 2),
    }


def rows(volumes: dict[str, Volume]) -> list[dict[str, Any]]:
    """Every lesion of every held-out case."""
    found: list[dict[str, Any]] = []
    grids = {name: (np.clip(on_grid(volume), *HU), bone_of(volume)) for name, volume in volumes.items()}
    for name, number, case, truth, _ in held_out_cases(volumes, SEED):
        before, bone = grids[name]
        after = np.clip(on_grid(case), *HU)
        labels = on_grid(dataclasses.replace(case, voxels=truth.astype(np.int16)), mode="nearest")
        for i in np.unique(truth[truth > 0]):
            found.append({"ct": name, "case": number, "id": int(i)} | observed(before, after, bone, labels == i))
            print(json.dumps(found[-1]), flush=True)
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """How many stand out at each number of false places; a lesion that leaves no bone around it does not."""
    return {"lesions": len(found)} | {
        f"stand out at {n} false places": sum(row["false_places"] <= n for row in found) for n in FALSE_PLACES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = rows(held_out(args.shared, Path(work)))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    document = {
        "date": date,
        "machine": f"{platform.processor() or platform.machine()}, CPU",
        "seed": SEED,
        "all": summary(found),
        "under 1 mL": summary([row for row in found if row["ml"] < 1]),
        "1 mL and more": summary([row for row in found if row["ml"] >= 1]),
        "cases": found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{date}_lesions_contrast.json"
    path.write_text(json.dumps(document, indent=1))
    print(json.dumps({key: document[key] for key in ("all", "under 1 mL", "1 mL and more")}, indent=1))
    print(path)


if __name__ == "__main__":
    main()
