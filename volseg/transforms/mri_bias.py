"""The slow shading of a coil taken out of one MR series: N4 (Tustison et al., IEEE TMI 2010) by SimpleITK.

The field is found on a coarse copy and divided out at full resolution, so that it costs about a second.
"""

from __future__ import annotations

import numpy as np
import SimpleITK
import torch
from monai.data import MetaTensor

from volseg.errors import InputError
from volseg.transforms.mri_itk import as_itk

# Log fields beyond this are no coil: N4 then chases anatomy or an image that was normalised before.
LARGEST_FACTOR = 8.0


def correct_bias(
    tensor: MetaTensor, *, work_mm: float = 4.0, iterations: tuple[int, ...] = (40, 40, 30)
) -> tuple[MetaTensor, float]:
    """Divide out the bias field of a (1, X, Y, Z) series.

    Args:
        work_mm: the coarse copy's voxel size, about.
        iterations: at most so many on each level of the spline.

    Returns:
        (the corrected series, the field's largest over its smallest value in the patient). The mean inside the patient
        stays. A series with negative values was corrected and normalised by someone else: it returns as it is, with 1.

    Raises:
        InputError: bias-field-diverged.
    """
    values = tensor.as_tensor().to(torch.float32)
    if float(values.amin()) < 0:
        return tensor, 1.0
    image = as_itk(tensor)
    shrink = [max(1, min(round(work_mm / s), n // 8)) for s, n in zip(image.GetSpacing(), image.GetSize(), strict=True)]
    coarse = SimpleITK.Shrink(image, shrink)
    # Otsu parts patient from air; voxels of 0 have no logarithm.
    patient = SimpleITK.And(SimpleITK.OtsuThreshold(coarse, 0, 1, 200), coarse > 0)
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(iterations)
    n4.SetConvergenceThreshold(1e-3)
    n4.SetNumberOfThreads(1)  # sums in one order: the same field every time
    try:
        n4.Execute(coarse, patient)
        field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    except RuntimeError as e:
        raise InputError("bias-field-diverged", f"{tensor.meta.get('channel')}: N4 fails on this series") from e
    inside = SimpleITK.GetArrayFromImage(SimpleITK.Resample(patient, image, interpolator=SimpleITK.sitkNearestNeighbor))
    body = inside.transpose(2, 1, 0) > 0
    low, high = (float(v) for v in np.percentile(field[body], (0.5, 99.5)))
    span = float(np.exp(high - low))
    if not np.isfinite(span) or span > LARGEST_FACTOR:
        raise InputError(
            "bias-field-diverged",
            f"{tensor.meta.get('channel')}: the bias field spans a factor of {span:.1f} (at most {LARGEST_FACTOR:g}); "
            "leave the correction out for this series",
        )
    # Outside the patient the spline is free; it is held to what it says inside.
    factor = torch.from_numpy(np.exp(np.clip(field, low, high)).astype(np.float32)).to(values.device)
    corrected = values / factor
    keep = torch.from_numpy(np.ascontiguousarray(body)).to(values.device)[None]
    corrected *= values[keep].mean() / corrected[keep].mean()
    out = MetaTensor(corrected, meta=dict(tensor.meta), applied_operations=list(tensor.applied_operations))
    return out, span
