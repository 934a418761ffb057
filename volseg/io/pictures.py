"""One JPEG or PNG -> grey pixels, or a mask. A picture has no geometry: nothing here is in millimetres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from volseg.errors import InputError
from volseg.io.files import check_path, shown

SUFFIXES = (".jpg", ".jpeg", ".png")
THRESHOLD = 127  # JPEG leaves ripples beside every edge: masks of 0 and 255 are read at the middle
# More of a mask between black and white than this: not a mask. Edges reach 0.4 % at JPEG quality 50, 1.3 % at 20.
MOST_GREY, GREY = 0.10, (32, 223)
# Two decoders, or one grey picture saved as RGB, differ by rounding.
COLOUR_TOLERANCE = 3


def read_picture(path: Path, *, grey_rgb: bool = False) -> NDArray[np.uint8]:
    """A grey picture, (rows, columns).

    Raises InputError: picture-unreadable, picture-colour.
    """
    try:
        with Image.open(check_path(path)) as picture:
            picture.load()
            mode = picture.mode
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise InputError(
            "picture-unreadable", f"{shown(path.name)}: no readable picture ({shown(e)}); copy or export it again"
        ) from e
    if mode == "L":
        return pixels
    if mode == "RGB":
        apart = int(np.ptp(pixels.astype(np.int16), axis=2).max())
        if apart <= COLOUR_TOLERANCE:
            if grey_rgb:
                return pixels[..., 0].copy()
            way = "its channels agree: save it as grey, or read the folder with grey_rgb"
        else:
            way = (
                f"its channels differ by up to {apart} of 255: a screen copy or an overlay, export the CT slice itself"
            )
        raise InputError("picture-colour", f"{shown(path.name)}: colour (RGB) where one grey channel is due; {way}")
    told = f"{shown(path.name)}: pixels of mode {mode} where 8-bit grey is due; save it as 8-bit grey"
    raise InputError("picture-colour", told)


def read_mask(path: Path, *, grey_rgb: bool = False) -> NDArray[np.bool_]:
    """A mask, (rows, columns): above 127 is inside.

    Raises InputError: as `read_picture`, and picture-not-a-mask where there is grey instead of black and white.
    """
    pixels = read_picture(path, grey_rgb=grey_rgb)
    highest = int(pixels.max())
    if 0 < highest <= THRESHOLD:
        raise InputError(
            "picture-not-a-mask",
            f"{shown(path.name)}: no value above {highest}, so nothing is inside; masks are 0 and 255, "
            "rescale it (or save an empty one as all 0)",
        )
    grey = float(np.mean((pixels >= GREY[0]) & (pixels <= GREY[1])))
    if grey > MOST_GREY:
        raise InputError(
            "picture-not-a-mask",
            f"{shown(path.name)}: {100 * grey:.0f} % of it is grey, a mask is black and white; "
            "is it an image in the wrong folder?",
        )
    return pixels > THRESHOLD
