"""The whole walk on one page: a study in, a sealed PatientResult out, and its files on disk."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import monai
import numpy as np
import torch

from volseg import __version__
from volseg.errors import InputError, UsageError
from volseg.geometry import spacing_mm, voxel_volume_mm3
from volseg.inference.bundle import LoadedBundle
from volseg.inference.ensemble import other_weights
from volseg.inference.reads import MR, channels_of, modality_of
from volseg.inference.segment import segment_sequences, segment_volume
from volseg.io import write_nifti
from volseg.io.files import LITTER, shown
from volseg.io.mri_candidates import plane_of
from volseg.measure import measure_lesions, normal_marrow_hu
from volseg.origin.features import lesion_features
from volseg.origin.frozen import with_origin
from volseg.origin.shipped import read_heads
from volseg.report.figures import write_preview
from volseg.report.files import as_any_new
from volseg.report.html import write_report
from volseg.report.tables import write_lesions_csv, write_result_json
from volseg.types import PatientResult, Provenance, Study, Volume

MARROW = 2  # value of marrow in the bone label map
RESULT_FILE = "result.json"
PROBABILITY_FILE = "probability.nii.gz"
FILES = ("lesions.nii.gz", "lesions.csv", "preview.png", "report.html", RESULT_FILE)

NO_BONE = "no bone was found in view: no window was searched, so 'no lesion' says nothing here"
NO_BONE_SEARCHED = "no bone was found in view: the whole volume was searched, and marks may lie in any tissue"
# A CT whose slices are thicker than this was not in the training data's heart: said, not refused.
THICK_SLICE_MM = 3.5
# Spine protocols have sagittal slices of 3 to 5 mm, and the MRI bundles work on such.
THICK_MRI_SLICE_MM = 5.5


@dataclass(frozen=True)
class OutputOptions:
    """Which files to write beside the always-written ones."""

    probability: bool = False
    overwrite: bool = False


def analyse_study(study: Study, bundle: LoadedBundle, *, say: Callable[[str], None] = lambda _: None) -> PatientResult:
    """Find, outline and measure the lesions of one study: its CT, or its MRI sequences where the bundle reads those.

    Args:
        study: as `volseg.io.read_study` gives it, or `volseg.io.mri_study.read_mri_study`.
        bundle: as `volseg.inference.bundle.load_bundle` gives it.
        say: called with a line for a person at each stage.

    Raises:
        InputError: the study holds no CT (no sequence the bundle reads); sequences that do not fit one another.
    """
    if modality_of(bundle.files.metadata) == MR:
        return _analyse_mri(study, bundle, say)
    return _analyse_ct(study, bundle, say)


def _analyse_ct(study: Study, bundle: LoadedBundle, say: Callable[[str], None]) -> PatientResult:
    volume = _ct_of(study)
    warnings = _confession(bundle) + _doubts(volume, THICK_SLICE_MM)
    x, y, z = volume.voxels.shape
    say(f"{study.name}: {x} x {y} x {z} voxels, {' x '.join(f'{s:.2f}' for s in spacing_mm(volume.affine))} mm")

    say(f"{study.name}: searching the bone with {bundle.files.name} on {_device_name(bundle.device)}")

    segmentation = segment_volume(volume, bundle)
    start = time.perf_counter()
    marrow = normal_marrow_hu(volume.voxels, segmentation.bone == MARROW, segmentation.instances, volume.affine)
    lesions = measure_lesions(
        segmentation.instances,
        volume.voxels,
        volume.affine,
        probability=segmentation.probability,
        marrow_hu=marrow,
    )
    if segmentation.scores is not None:
        # A detector says how sure it is of a lesion; the mean probability inside it says how sure of its outline.
        lesions = tuple(replace(one, score=segmentation.scores[one.id - 1]) for one in lesions)
    if not segmentation.bone.any():
        warnings.append(NO_BONE_SEARCHED if getattr(bundle.inferer, "all_windows", False) else NO_BONE)
    warnings += segmentation.notes
    seconds = dict(segmentation.seconds) | {"measuring": round(time.perf_counter() - start, 3)}
    result = PatientResult(
        study=study,
        instances=segmentation.instances,
        probability=segmentation.probability,
        lesions=lesions,
        provenance=_provenance(bundle, study),
        marrow_hu=marrow,
        bone_volume_mm3=float(np.count_nonzero(segmentation.bone)) * voxel_volume_mm3(volume.affine),
        seconds=seconds,
        warnings=tuple(warnings),
    )
    return _with_origin(result, bundle)


def _analyse_mri(study: Study, bundle: LoadedBundle, say: Callable[[str], None]) -> PatientResult:
    """Masks on the reference series' grid; no HU, no kinds, no bone volume: signals are arbitrary, bone is not sought.

    Nor is the tumour's origin asked for: the head was trained on CT.
    """
    channels = channels_of(bundle.files.metadata)
    study = replace(study, volumes=_sequences_of(study, channels))
    reference = next(iter(study.volumes.values()))
    warnings = _confession(bundle) + _mri_doubts(study, channels)
    x, y, z = reference.voxels.shape
    size = " x ".join(f"{s:.2f}" for s in spacing_mm(reference.affine))
    say(f"{study.name}: {', '.join(study.volumes)}; {reference.channel} has {x} x {y} x {z} voxels, {size} mm")
    say(f"{study.name}: searching the whole volume with {bundle.files.name} on {_device_name(bundle.device)}")
    segmentation = segment_sequences(study, bundle)
    start = time.perf_counter()
    lesions = measure_lesions(segmentation.instances, None, reference.affine, probability=segmentation.probability)
    return PatientResult(
        study=replace(study, notes=(*study.notes, *segmentation.notes)),
        instances=segmentation.instances,
        probability=segmentation.probability,
        lesions=lesions,
        provenance=_provenance(bundle, study),
        bone_volume_mm3=math.nan,
        seconds=dict(segmentation.seconds) | {"measuring": round(time.perf_counter() - start, 3)},
        warnings=tuple(warnings),
    )


def _with_origin(result: PatientResult, bundle: LoadedBundle) -> PatientResult:
    """The same result with the probability of a lung primary, where the bundle's metadata carry a head for it."""
    image, clinical = read_heads(bundle.files.metadata)
    if image is None:
        return result
    start = time.perf_counter()
    table = lesion_features(result.image.voxels, result.instances, result.image.affine, marrow_hu=result.marrow_hu)
    answered = with_origin(result, image, table, clinical=clinical)
    return replace(answered, seconds=dict(result.seconds) | {"origin": round(time.perf_counter() - start, 3)})


def write_results(result: PatientResult, folder: str | Path, options: OutputOptions = OutputOptions()) -> Path:
    """Write everything into `folder`, which is made, and return it.

    The files are made in a hidden folder beside it and appear all at once, so a failure leaves nothing half-written.

    Raises:
        UsageError: the folder exists and `overwrite` is off, or it is not a result that could be replaced.
        InputError: the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not options.overwrite:
        raise UsageError("output-exists", f"{folder} exists; pass --overwrite to replace it")
    if folder.exists() and not replaceable(folder):
        held = ", ".join(map(shown, foreign(folder)[:4])) if folder.is_dir() else ""
        what = f"{folder} is not a result of volseg alone{held and f' (it holds {held})'}"
        raise UsageError("output-not-a-result", f"{what}; nothing there was replaced")
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Not named by the process: its number repeats from container to container, and a leftover may have it.
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        as_any_new(partial, 0o777)
        _write_files(result, partial, options)
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    except OSError as error:
        raise InputError("output-failed", f"{folder}: {error.strerror or error}; nothing was written") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def replaceable(folder: Path) -> bool:
    """Whether nothing is lost with a folder but a result: it is empty, or holds a result and nothing foreign."""
    if not folder.is_dir():
        return False
    return not any(folder.iterdir()) or ((folder / RESULT_FILE).is_file() and not foreign(folder))


def foreign(folder: Path) -> list[str]:
    """Names in a result's folder that volseg did not write: somebody's letters, a radiologist's notes, other results.

    What its result.json lists counts as written, so that a result of another version can be replaced too.
    """
    try:
        listed = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))["files"]
        ours = {str(name) for name in listed}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    ours |= {*FILES, PROBABILITY_FILE, *LITTER}
    return sorted(path.name for path in folder.iterdir() if path.name not in ours or not path.is_file())


def _write_files(result: PatientResult, folder: Path, options: OutputOptions) -> None:
    affine = result.image.affine
    start = time.perf_counter()
    write_nifti(folder / "lesions.nii.gz", result.instances, affine, dtype=np.uint16)
    if options.probability:
        write_nifti(folder / PROBABILITY_FILE, result.probability, affine, dtype=np.float32)
    write_lesions_csv(result, folder / "lesions.csv")
    write_preview(result, folder / "preview.png")
    write_report(result, folder / "report.html")
    files = [*FILES, PROBABILITY_FILE] if options.probability else FILES
    seconds = {"writing": round(time.perf_counter() - start, 3)}
    write_result_json(result, folder / RESULT_FILE, files=files, seconds=seconds)


def _ct_of(study: Study) -> Volume:
    if "CT" not in study.volumes:
        found = ", ".join(study.volumes) or "nothing"
        raise InputError(
            "wrong-modality", f"{study.source or study.name}: this bundle reads CT; the study holds {found}"
        )
    return study.volumes["CT"]


def _sequences_of(study: Study, channels: Sequence[str]) -> dict[str, Volume]:
    """The study's volumes that the bundle reads, the reference first."""
    kept = {channel: volume for channel, volume in study.volumes.items() if channel in channels}
    if not kept:
        found = ", ".join(study.volumes) or "nothing"
        raise InputError(
            "wrong-modality",
            f"{study.source or study.name}: this bundle reads MRI ({', '.join(channels)}); the study holds {found}",
        )
    return kept


def _mri_doubts(study: Study, channels: Sequence[str]) -> list[str]:
    reference = next(iter(study.volumes.values()))
    doubts = []
    missing = [channel for channel in channels if channel not in study.volumes]
    if missing:
        doubts.append(f"read without {', '.join(missing)}: fewer sequences find fewer lesions")
    plane = plane_of(reference.affine)
    if plane not in ("sagittal", "volume"):
        doubts.append(f"the reference {reference.channel} has {plane} slices; the bundle was trained on sagittal ones")
    return doubts + _doubts(reference, THICK_MRI_SLICE_MM)


def _confession(bundle: LoadedBundle) -> list[str]:
    """What a bundle has to confess stands in every report it makes."""
    notice = bundle.files.metadata.get("notice")
    return [str(notice)] if notice else []


def _doubts(volume: Volume, thick_mm: float) -> list[str]:
    thickest = float(spacing_mm(volume.affine).max())
    if thickest > thick_mm:
        return [f"voxels are {thickest:.1f} mm long: lesions smaller than about {2 * thickest:.0f} mm can be missed"]
    return []


def _provenance(bundle: LoadedBundle, study: Study) -> Provenance:
    return Provenance(
        bundle=bundle.files.name,
        bundle_version=bundle.files.version,
        weights_sha256=bundle.weights_sha256,
        volseg_version=__version__,
        torch_version=torch.__version__,
        monai_version=monai.__version__,
        device=_device_name(bundle.device),
        precision=getattr(bundle.inferer, "precision", "float32"),
        settings=bundle.settings,
        other_weights=other_weights(bundle),
        study_fingerprint=study.fingerprint,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})"
