"""Tissues -> MR signal by the spin-echo equations, and the contrast of a metastasis to marrow. Numbers only.

Relaxation times are rounded values at 1.5 T after de Bazelaire et al. (Radiology 2004) and Stanisz et al. (MRM 2005);
lesion contrasts are Mehta's (AJNR 1995): T1 -42 %, fast spin-echo T2 +121 %, STIR +262 % against marrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from volseg.labels import LesionKind, MriChannel


@dataclass(frozen=True)
class Tissue:
    """Proton density (water is 1), T1 and T2 in ms, and how much faster T1 relaxes after contrast agent (1/s)."""

    density: float
    t1_ms: float
    t2_ms: float
    uptake_per_s: float = 0.0


@dataclass(frozen=True)
class Protocol:
    """Times of a spin-echo sequence in ms; `ti_ms` 0 means no inversion."""

    tr_ms: float
    te_ms: float
    ti_ms: float = 0.0
    agent: bool = False


PROTOCOLS: Mapping[MriChannel, Protocol] = {
    "T1": Protocol(550, 11),
    "T1c": Protocol(550, 11, agent=True),
    "T2": Protocol(3500, 100),
    "STIR": Protocol(4000, 50, ti_ms=165),
}

# A tissue is told by the HU the CT phantom paints it with: each row holds up to (not including) its first number.
# Blood flows, so spin echo sees a void; enhanced kidneys, as dense as the aorta, share that fate.
TISSUES: tuple[tuple[float, str, Tissue], ...] = (
    (-300.0, "gas", Tissue(0.0, 1000, 50)),
    (0.0, "fat", Tissue(0.9, 250, 75)),
    (30.0, "fluid", Tissue(1.0, 4000, 1500)),
    (42.0, "cord", Tissue(0.75, 750, 75)),
    (72.0, "muscle", Tissue(0.8, 1000, 42, 0.15)),
    (100.0, "disc", Tissue(0.8, 1100, 85)),
    (130.0, "organ", Tissue(0.8, 650, 50, 0.7)),
    (float("inf"), "blood", Tissue(0.08, 1400, 250, 3.0)),
)
CORTEX = Tissue(0.06, 1000, 20)
# Marrow is a mixture of these two.
FATTY_MARROW, RED_MARROW = Tissue(0.9, 270, 70), Tissue(0.8, 850, 40, 0.25)

# kind -> channel -> (mean, deviation, lowest, highest) of (lesion - marrow) / marrow. T1c of a lytic lesion is its T1
# times the enhancement; its row says how much.
CONTRAST: Mapping[LesionKind, Mapping[MriChannel, tuple[float, float, float, float]]] = {
    "lytic": {
        "T1": (-0.42, 0.08, -0.6, -0.25),
        "T1c": (1.1, 0.25, 0.6, 1.8),
        "T2": (1.21, 0.35, 0.4, 2.2),
        "STIR": (2.62, 0.6, 1.2, 4.5),
    },
    "sclerotic": {
        "T1": (-0.65, 0.08, -0.85, -0.45),
        "T1c": (0.1, 0.08, 0.0, 0.3),
        "T2": (-0.5, 0.12, -0.8, -0.25),
        "STIR": (-0.45, 0.12, -0.75, -0.2),
    },
}


def spin_echo(tissue: Tissue, protocol: Protocol) -> float:
    """Signal of a tissue: density |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2); relaxed water gives 1.

    Without inversion the bracket is 1 - exp(-TR/T1). Agent shortens T1: 1/T1 + uptake.
    """
    t1 = 1000 / (1000 / tissue.t1_ms + tissue.uptake_per_s) if protocol.agent else tissue.t1_ms
    recovered = 1 - np.exp(-protocol.tr_ms / t1)
    if protocol.ti_ms:
        recovered = 1 - 2 * np.exp(-protocol.ti_ms / t1) + np.exp(-protocol.tr_ms / t1)
    return float(tissue.density * abs(recovered) * np.exp(-protocol.te_ms / tissue.t2_ms))


def marrow_signal(channel: MriChannel, fat_fraction: float) -> float:
    """Magnitudes of fat and water added, by their share of the marrow."""
    protocol = PROTOCOLS[channel]
    return fat_fraction * spin_echo(FATTY_MARROW, protocol) + (1 - fat_fraction) * spin_echo(RED_MARROW, protocol)


def draw_contrasts(kind: LesionKind, rng: np.random.Generator) -> dict[MriChannel, float]:
    """(lesion - marrow) / marrow of one lesion in each channel."""
    drawn: dict[MriChannel, float] = {}
    for channel, (mean, deviation, low, high) in CONTRAST[kind].items():
        drawn[channel] = float(np.clip(rng.normal(mean, deviation), low, high))
    drawn["T1c"] = (1 + drawn["T1"]) * (1 + drawn["T1c"]) - 1
    return drawn
