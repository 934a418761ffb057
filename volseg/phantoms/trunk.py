"""Everything of the trunk that is not bone: skin, fat, muscle, organs, vessels, gas, the table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from volseg.phantoms.canvas import Canvas, capsule, ellipsoid
from volseg.phantoms.spine import Level


def draw_body(canvas: Canvas, half_x: float, half_y: float) -> None:
    """Skin, subcutaneous fat, a ring of muscle and the fat inside it, as elliptic columns."""
    x, y = canvas.x.reshape(-1, 1, 1), canvas.y.reshape(1, -1, 1)
    z = canvas.z.reshape(1, 1, -1)
    waist = 1 + 0.03 * np.sin(z / 50.0)
    for inset, hu in ((0.0, 20.0), (2.0, -105.0), (14.0, 55.0), (25.0, -95.0)):
        a, b = (half_x - inset) * waist, half_y - inset
        depth = (1 - np.sqrt((x / a) ** 2 + (y / b) ** 2)) * min(half_x, half_y)
        cover = canvas.cover(depth)
        canvas.hu += (cover * (hu - canvas.hu)).astype(np.float32)
        canvas.plain_hu[np.broadcast_to(cover > 0.5, canvas.hu.shape)] = hu


def draw_back_muscles(canvas: Canvas, levels: list[Level], half_y: float, *, psoas: bool) -> None:
    """Erector spinae behind, psoas beside the vertebrae."""
    for level in levels:
        x0, y0, z0 = level.center
        tall = (level.height + level.disc) / 2 + 3
        for side in (-1.0, 1.0):
            deep = (x0 + side * 27, max(y0 - 36, -half_y + 22), z0)
            low, high = (deep[0], deep[1], z0 - tall), (deep[0], deep[1], z0 + tall)
            canvas.soft(capsule(low, high, 17.0, (0.8, 1.0, 1.0)), deep, (30.0, 24.0, tall + 3), 58.0, 6.0)
            if psoas:
                place = (x0 + side * (level.half_width + 14), y0 - 2, z0)
                low, high = (place[0], place[1], z0 - tall), (place[0], place[1], z0 + tall)
                canvas.soft(capsule(low, high, 12.0, (1.0, 0.85, 1.0)), place, (17.0, 18.0, tall + 3), 62.0, 5.0)


def draw_vessels(canvas: Canvas, levels: list[Level], aorta_hu: float) -> None:
    """The aorta in front of the spine on the patient's left (negative x), the vena cava on the right."""
    for a, b in pairwise(levels):
        for shift, radius, hu in ((-13.0, 10.0, aorta_hu), (15.0, 10.5, 0.55 * aorta_hu)):
            low = (a.center[0] + shift, a.center[1] + a.half_depth + radius + 2, a.center[2])
            high = (b.center[0] + shift, b.center[1] + b.half_depth + radius + 2, b.center[2])
            middle = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, (low[2] + high[2]) / 2)
            canvas.soft(capsule(low, high, radius), middle, 36.0, hu)


def draw_abdomen(canvas: Canvas, back_y: float, half_x: float, half_y: float, rng: np.random.Generator) -> None:
    """Liver on the right, spleen on the left, enhancing kidneys (the right one lower), bowel with gas on the left."""
    liver = (0.48 * half_x, 12.0, 62.0)
    canvas.soft(ellipsoid(liver, (0.44 * half_x, half_y - 34, 52.0), 2.3), liver, (75.0, 75.0, 60.0), 112.0, 6.0)
    spleen = (-0.62 * half_x, -14.0, 68.0)
    canvas.soft(ellipsoid(spleen, (20.0, 32.0, 34.0)), spleen, 38.0, 122.0, 5.0)
    for side, z in ((1.0, -4.0), (-1.0, 10.0)):
        kidney = (side * 58.0, back_y + 2, z)
        canvas.soft(ellipsoid(kidney, (22.0, 24.0, 48.0)), kidney, 54.0, rng.uniform(170, 215), 8.0)
        pelvis = (side * 50.0, back_y + 6, z)
        canvas.soft(ellipsoid(pelvis, (9.0, 12.0, 22.0)), pelvis, 26.0, 20.0)
    draw_bowel(canvas, (-0.35 * half_x, 34.0, 0.0), half_x, rng)


def draw_bowel(canvas: Canvas, around: tuple[float, float, float], half_x: float, rng: np.random.Generator) -> None:
    """Loops with wall, content and gas that rises to the front."""
    for _ in range(16):
        middle = tuple(float(m + rng.uniform(-1, 1) * s) for m, s in zip(around, (0.33 * half_x, 18, 75), strict=True))
        radius = float(rng.uniform(8, 15))
        end = tuple(float(m + rng.uniform(-18, 18)) for m in middle)
        a, b = (middle[0], middle[1], middle[2]), (end[0], end[1], end[2])
        canvas.soft(capsule(a, b, radius), a, 50.0, 45.0, 8.0)
        canvas.soft(capsule(a, b, radius - 2.5), a, 50.0, 22.0, 10.0)
        if rng.random() < 0.5:
            gas = (a[0], a[1] + 0.35 * radius, a[2])
            canvas.soft(ellipsoid(gas, (0.55 * radius, 0.4 * radius, 0.8 * radius)), gas, radius + 2, -880.0)


def draw_chest(canvas: Canvas, half_x: float, half_y: float, rng: np.random.Generator) -> None:
    """Two lungs with vessels, the heart to the left, the trachea; the right dome of liver below."""
    for side in (-1.0, 1.0):
        lung = (side * 0.47 * half_x, 2.0, 10.0)
        radii = (0.36 * half_x, half_y - 32, 130.0)
        canvas.soft(ellipsoid(lung, radii, 2.6), lung, (radii[0] + 3, radii[1] + 3, 140.0), -850.0, 12.0)
        for _ in range(45):
            start = tuple(
                float(c + rng.uniform(-0.75, 0.75) * r) for c, r in zip(lung, (*radii[:2], 75.0), strict=True)
            )
            hilum = (side * 0.2 * half_x, 0.0, 5.0)
            end = tuple(float(s + (h - s) * rng.uniform(0.15, 0.35)) for s, h in zip(start, hilum, strict=True))
            a, b = (start[0], start[1], start[2]), (end[0], end[1], end[2])
            canvas.soft(capsule(a, b, float(rng.uniform(0.8, 2.2))), a, 40.0, 40.0)
    heart = (-16.0, 24.0, -35.0)
    canvas.soft(ellipsoid(heart, (46.0, 36.0, 42.0)), heart, 50.0, 50.0, 5.0)
    chamber = (-24.0, 24.0, -38.0)
    canvas.soft(ellipsoid(chamber, (26.0, 20.0, 26.0)), chamber, 30.0, 220.0, 8.0)
    dome = (0.48 * half_x, 2.0, -85.0)
    canvas.soft(ellipsoid(dome, (0.36 * half_x, half_y - 34, 42.0)), dome, (60.0, 80.0, 46.0), 110.0, 5.0)
    trachea = ((2.0, 8.0, 20.0), (2.0, 12.0, 120.0))
    canvas.soft(capsule(*trachea, 9.0), (2.0, 10.0, 70.0), 70.0, -980.0)


def draw_pelvic_organs(canvas: Canvas, back_y: float, half_x: float, rng: np.random.Generator) -> None:
    """Gluteal and iliacus muscle, bladder, rectum, bowel on the left."""
    for side in (-1.0, 1.0):
        rear = (side * 78.0, back_y - 12, -40.0)
        canvas.soft(ellipsoid(rear, (42.0, 30.0, 80.0)), rear, (46.0, 34.0, 84.0), 55.0, 8.0)
        inner = (side * 70.0, back_y + 34, 10.0)
        canvas.soft(ellipsoid(inner, (22.0, 26.0, 60.0)), inner, (26.0, 30.0, 64.0), 60.0, 5.0)
        thigh = (side * 95.0, back_y + 40, -85.0)
        canvas.soft(ellipsoid(thigh, (44.0, 48.0, 50.0)), thigh, 54.0, 56.0, 8.0)
    bladder = (0.0, back_y + 52, -70.0)
    canvas.soft(ellipsoid(bladder, (30.0, 24.0, 22.0)), bladder, 34.0, 8.0)
    rectum = (-4.0, back_y - 2, -85.0)
    canvas.soft(ellipsoid(rectum, (14.0, 14.0, 35.0)), rectum, 38.0, 40.0, 10.0)
    canvas.soft(ellipsoid(rectum, (6.0, 5.0, 18.0)), rectum, 22.0, -850.0)
    draw_bowel(canvas, (-0.25 * half_x, back_y + 60, 20.0), half_x, rng)


def draw_table(canvas: Canvas, top_y: float) -> None:
    """A curved carbon shell with a foam core under the patient."""
    x, y = canvas.x.reshape(-1, 1, 1), canvas.y.reshape(1, -1, 1)
    sag = top_y + 0.0006 * x**2
    for low, high, hu in ((-9.0, 0.0, -150.0), (-7.6, -1.4, -930.0)):
        depth = np.minimum(y - (sag + low), (sag + high) - y)
        cover = canvas.cover(depth) * (canvas.hu < -900)
        canvas.hu += (cover * (hu - canvas.hu)).astype(np.float32)
