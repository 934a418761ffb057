"""Pictures -> pixels: a sheet laid out in pixels, panels in millimetres. Matplotlib's objects, no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray
from PIL import Image

from volseg.labels import LesionKind
from volseg.report.views import MARKS, Picture, outline

DPI = 100
PAPER = "#0d1117"
INK = "#e6edf3"
FAINT_INK = "#9aa7b4"
# Told apart on grey anatomy and by colour-blind readers (after Okabe and Ito's palette).
KIND_COLOURS: dict[LesionKind, str] = {
    "lytic": "#ff9f1c",
    "sclerotic": "#4cc9f0",
    "mixed": "#f277c6",
    "unknown": "#ff9f1c",
}


@dataclass(frozen=True)
class Window:
    """What a panel shows: center and size in picture mm."""

    x_mm: float
    y_mm: float
    width_mm: float
    height_mm: float


class Sheet:
    """A dark page of `width` x `height` pixels; positions count from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
        self.canvas = FigureCanvasAgg(self.figure)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Empty black axes without ticks."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        axes.set(facecolor="black", xticks=(), yticks=())
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def text(self, left: float, top: float, words: str, *, size_px: float, colour: str = INK, **style: Any) -> None:
        """One line of text; `left`, `top` is its upper left corner unless `ha`, `va` say otherwise."""
        style = {"va": "top", "ha": "left", **style}
        position = (left / self.width, 1 - top / self.height)
        self.figure.text(*position, words, fontsize=points(size_px), color=colour, parse_math=False, **style)

    def png(self) -> bytes:
        """The finished page."""
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[:, :, :3]
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=6)
        return out.getvalue()


def points(size_px: float) -> float:
    return size_px * 72 / DPI


def show(axes: Axes, picture: Picture, window: Window, *, darkest: float, brightest: float) -> None:
    """Draw a picture's values in true proportions; the window is widened to the panel's shape."""
    rows, columns = picture.values.shape
    axes.imshow(
        np.clip(np.asarray(picture.values, dtype=np.float32), darkest, brightest),
        cmap="gray",
        vmin=darkest,
        vmax=brightest,
        interpolation="bilinear",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        transform=Affine2D(picture.matrix_mm) + axes.transData,
        aspect="auto",
    )
    box = axes.get_window_extent()
    mm_per_px = max(window.width_mm / box.width, window.height_mm / box.height)
    half_width, half_height = mm_per_px * box.width / 2, mm_per_px * box.height / 2
    axes.set_xlim(window.x_mm - half_width, window.x_mm + half_width)
    axes.set_ylim(window.y_mm + half_height, window.y_mm - half_height)


def mark_directions(axes: Axes, picture: Picture, *, size_px: float = 15) -> None:
    """R, L, A, P, S, I at the borders."""
    places = (
        (0.0, 0.5, "left", "center"),
        (1.0, 0.5, "right", "center"),
        (0.5, 1.0, "center", "top"),
        (0.5, 0.0, "center", "bottom"),
    )
    box = axes.get_window_extent()
    for letter, (x, y, ha, va) in zip(MARKS[picture.plane], places, strict=True):
        inset_x, inset_y = 5 / box.width * (1 - 2 * x) * (x != 0.5), 4 / box.height * (1 - 2 * y) * (y != 0.5)
        axes.text(
            x + inset_x,
            y + inset_y,
            letter,
            transform=axes.transAxes,
            ha=ha,
            va=va,
            color=INK,
            fontsize=points(size_px),
            fontweight="bold",
            bbox={"facecolor": "black", "alpha": 0.35, "linewidth": 0, "pad": 1.5},
            zorder=6,
        )


def mark_scale(axes: Axes, *, size_px: float = 12, fits_in_mm: float | None = None) -> None:
    """A bar of a round length in the lower right corner: less than 0.3 of the panel's width (or of `fits_in_mm`)."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    most = 0.3 * (right - left if fits_in_mm is None else fits_in_mm)
    length = next((mm for mm in (200, 100, 50, 20, 10, 5, 2) if mm <= most), 1)
    margin = (right - left) * 0.03
    y = bottom - (bottom - top) * 0.035
    ends = [right - margin - length, right - margin]
    axes.plot(ends, [y, y], color="black", alpha=0.5, linewidth=5.5, solid_capstyle="projecting", zorder=6)
    axes.plot(ends, [y, y], color=INK, linewidth=2.5, solid_capstyle="butt", zorder=6)
    axes.text(
        right - margin - length / 2,
        y - (bottom - top) * 0.012,
        f"{length} mm",
        color=INK,
        fontsize=points(size_px),
        ha="center",
        va="bottom",
        zorder=6,
        bbox={"facecolor": "black", "alpha": 0.35, "linewidth": 0, "pad": 1.0},
    )


def caption(axes: Axes, words: str, *, colour: str = INK, size_px: float = 13) -> None:
    """Words in the upper left corner of a panel."""
    box = axes.get_window_extent()
    axes.text(
        7 / box.width,
        1 - 6 / box.height,
        words,
        transform=axes.transAxes,
        ha="left",
        va="top",
        color=colour,
        fontsize=points(size_px),
        parse_math=False,
        bbox={"facecolor": "black", "alpha": 0.35, "linewidth": 0, "pad": 1.5},
        zorder=7,
    )


def draw_contours(axes: Axes, picture: Picture, colours: Mapping[int, str], *, main: int) -> None:
    """Lesion borders on the true voxel edges, `main` in full strength, the others thinner; numbers beside them."""
    for id_ in (int(n) for n in np.unique(picture.labels) if n != 0):
        rows, columns = np.nonzero(picture.labels == id_)
        first = np.array([columns.min(), rows.min()])
        mask = picture.labels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == id_
        colour = colours.get(id_, FAINT_INK)
        add_lines(axes, picture, outline(mask) + first, colour, width=1.7 if id_ == main else 1.0)
        x, y = picture.to_mm(np.array([columns.max() + 0.8, rows.min() - 0.8]))
        write_number(axes, x, y, id_, colour)


def add_lines(axes: Axes, picture: Picture, lines: NDArray, colour: str, *, width: float) -> None:
    """Lines (n, 2, 2) in columns and rows."""
    axes.add_collection(
        LineCollection(list(picture.to_mm(lines)), colors=colour, linewidths=width, capstyle="projecting", zorder=4),
        autolim=False,
    )


def write_number(axes: Axes, x: float, y: float, id_: int, colour: str, *, centered: bool = False) -> None:
    """A lesion's number; (x, y) is its middle or else its lower left corner."""
    axes.text(
        x,
        y,
        f"{id_}",
        color=colour,
        fontsize=points(15),
        fontweight="bold",
        ha="center" if centered else "left",
        va="center_baseline" if centered else "bottom",
        clip_on=True,
        zorder=6,
        bbox={"facecolor": "black", "alpha": 0.45, "linewidth": 0, "pad": 1.0},
    )


def rgba(colour: str, alpha: float) -> tuple[float, float, float, float]:
    red, green, blue = to_rgb(colour)
    return red, green, blue, alpha
