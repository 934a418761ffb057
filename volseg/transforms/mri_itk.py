"""MetaTensor -> SimpleITK image, and a rigid transform of SimpleITK's -> matrix in RAS+ mm. LPS lives only here."""

from __future__ import annotations

import numpy as np
import SimpleITK
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from volseg.errors import InputError
from volseg.geometry import LPS_TO_RAS, Affine, direction_cosines, lps_to_ras, shear, spacing_mm

# SimpleITK holds no shear; direction cosines rounded in the third digit are made orthogonal.
LARGEST_SHEAR = 5e-3


def as_itk(tensor: MetaTensor) -> SimpleITK.Image:
    """A (1, X, Y, Z) series as a float32 image with its geometry (a copy).

    Raises:
        InputError: grid-sheared.
    """
    affine = lps_to_ras(tensor.affine.cpu().numpy())  # its own inverse: RAS -> LPS
    if shear(affine) > LARGEST_SHEAR:
        raise InputError(
            "grid-sheared",
            f"{tensor.meta.get('channel')}: its voxel axes are not at right angles; resample it before registration",
        )
    u, _, v = np.linalg.svd(direction_cosines(affine))
    voxels = tensor.as_tensor()[0].to(torch.float32).cpu().numpy()
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in spacing_mm(affine)])
    image.SetDirection([float(x) for x in (u @ v).ravel()])
    image.SetOrigin([float(x) for x in affine[:3, 3]])
    return image


def flipped(point_mm: NDArray) -> list[float]:
    """A point (3,) from RAS+ to LPS mm or back, as SimpleITK takes it."""
    return [float(v) for v in LPS_TO_RAS[:3, :3] @ point_mm]


def rigid_matrix_ras(transform: SimpleITK.Euler3DTransform) -> Affine:
    """The (4, 4) matrix, in RAS+ mm, of a rigid transform about its center."""
    rotation = np.reshape(transform.GetMatrix(), (3, 3))
    center, shift = np.asarray(transform.GetCenter()), np.asarray(transform.GetTranslation())
    lps = np.eye(4)
    lps[:3, :3] = rotation
    lps[:3, 3] = center + shift - rotation @ center
    return LPS_TO_RAS @ lps @ LPS_TO_RAS
