"""Test-time training: a network learns what is normal in the very CT it searches, and looks again. No label is needed.

Enters: a preprocessed image, its HU and bone mask, a trained network. Leaves: logits, as of any inferer. Synthetic
lesions are grown in the patient's own bone, everything else counts as healthy, and a copy of the network is trained on
that for some minutes: joints, cartilage and loose marrow that looked like lesions in a body never seen no longer do.

Whatever is marked must not have been learnt as healthy, or metastases would be unlearnt with the anatomy. So the body
is cut into two halves (`first_half`), and each half is searched by a copy that was trained in the other one alone. They
interlock: what is right in one half is left in the other, and neighbouring slabs alternate, so that anatomy, which
repeats from side to side and from vertebra to vertebra, is seen in both, and a metastasis in one: what the network
suspects at first sight is never cut. Only what it suspects is looked at again; there the copies' answer and the
network's own are averaged.

Sources: test-time training, Sun et al., ICML 2020 (arXiv 1909.13231); cross-fitting, Chernozhukov et al. 2018 (arXiv
1608.00060); lesions as in `volseg.transforms.synthesis`. The combination is our own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.optimizers import WarmupCosineSchedule
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from volseg.geometry import TOUCHING
from volseg.training.muon import Muon
from volseg.training.own_body import Case, first_half, grown_cases, near, plain
from volseg.training.recipes import Recipe

# A voxel of at least this probability is suspected at first sight.
SUSPECT = 0.3
# A suspected piece is searched again, and so far around it, if it reaches this somewhere: what stays below cannot
# reach .75 in the mean, and no mark is reported for less.
WORTH_A_LOOK, AROUND_MM = 0.5, 12.0


class AdaptingInferer(Inferer):
    """Searches with `inferer`, and again where something is suspected, after training the network on that very scan.

    Args:
        inferer: what slides the window.
        recipe: how this kind of network is trained, and on what grid (`volseg.training.recipes`).
        steps: of training per half; 0 leaves everything to `inferer`.
        batch_size: crops per step.
        learning_rate: the highest; it rises for a twelfth of the steps and falls to 0 (cosine).
        precision: "float32" or "bfloat16", of the training.
        seed: of lesions, crops and augmentation. The network given is not changed, nor are global random states.
        progress: a bar on stderr; None shows it only on a terminal.

    Call: `inferer(image, network, occupancy=bone, hu=hu)`; image (B, C, X, Y, Z), bone (B, 1, X, Y, Z) as BoneMaskd
    gives it, hu (B, 1, X, Y, Z). Without bone in view or without a suspect, nothing is trained. Logits (B, 2, X, Y, Z)
    come out: the network's own, and of the mean probabilities where it looked again.
    """

    def __init__(
        self,
        inferer: Inferer,
        recipe: Recipe,
        *,
        steps: int = 0,
        batch_size: int = 4,
        learning_rate: float = 1e-3,
        precision: str = "float32",
        seed: int = 31,
        progress: bool | None = False,
    ) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps of test-time training cannot be negative, got {steps}")
        self.inferer, self.recipe, self.steps = inferer, recipe, steps
        self.batch_size, self.learning_rate = batch_size, learning_rate
        self.precision, self.seed, self.progress = precision, seed, progress
        self._said = ""

    @property
    def note(self) -> str:
        """What to tell the reader of the last result; empty where no training was asked for."""
        return self._said

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        occupancy: Tensor | None = None,
        hu: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, C, X, Y, Z) -> logits (B, 2, X, Y, Z)."""
        self._said = ""
        own: Tensor = self.inferer(inputs, network, *args, occupancy=occupancy, **kwargs)
        if not self.steps or occupancy is None or hu is None:
            return own
        if not isinstance(network, nn.Module):
            raise TypeError(f"only a torch.nn.Module can be trained on the scan, not {type(network).__name__}")
        logits = own.clone()
        for i in range(len(inputs)):
            bone = plain(occupancy[i, 0]).cpu().numpy().astype(np.uint8)
            if not (bone > 0).any():
                continue
            mean = self.recipe.probabilities(plain(own[i]))
            lesion = mean[1].cpu().numpy()
            again = worth_another_look(lesion, self.recipe.spacing_mm)
            first = first_half(bone > 0, lesion >= SUSPECT, self.recipe.spacing_mm)
            searched = [half for half in (first, ~first) if (again & half).any()]
            self._said = self._what_was_done(len(searched))
            copies = self.trained_copies(plain(hu[i, 0]).cpu().numpy(), bone, searched, network)
            for half, searcher in zip(searched, copies, strict=True):
                where = torch.from_numpy(again & half).to(own.device)
                found = self.inferer(inputs[i : i + 1], searcher, *args, occupancy=where[None, None], **kwargs)[0]
                mean[:, where] = (mean[:, where] + self.recipe.probabilities(plain(found)[:, where])) / 2
                logits[i][:, where] = self.recipe.logits(mean[:, where]).to(logits.dtype)
        return logits

    def trained_copies(
        self, hu: NDArray, bone: NDArray[np.uint8], halves: Sequence[NDArray[np.bool_]], network: nn.Module
    ) -> list[nn.Module]:
        """A copy of a network for each of `halves` (X, Y, Z) of a CT on the working grid, trained outside of it alone.

        hu, bone: (X, Y, Z) on that grid. The copies lie where the network does.
        """
        if not halves:
            return []
        device = next(network.parameters()).device
        disable = None if self.progress is None else not self.progress
        bar = tqdm(total=len(halves) * self.steps, desc="growing lesions to learn from", unit="step", disable=disable)
        copies = []
        with bar, torch.inference_mode(False), torch.enable_grad():
            cases = grown_cases(hu, bone, self.recipe.spacing_mm, self.seed)
            bar.set_description("learning this body")
            bar.unpause()
            for half in halves:
                learnt_from = torch.from_numpy((~half).astype(np.uint8))[None]
                here = [case | {"counts": learnt_from} for case in cases]
                copies.append(self._trained(copy.deepcopy(network), here, device, bar))
        return copies

    def _what_was_done(self, copies: int) -> str:
        if not copies:
            return "the network was not trained on this scan: nothing in it was suspected enough for another look"
        how = f"{copies} x {self.steps} steps in {self.precision} on synthetic lesions grown in its bone"
        return f"the network was trained on this scan itself, for another look at what it suspected: {how}"

    def _trained(self, network: nn.Module, cases: list[Case], device: torch.device, bar: tqdm) -> nn.Module:
        rng = np.random.default_rng(self.seed)
        crops = self.recipe.crops()
        crops.set_random_state(self.seed)
        network.train().requires_grad_(True)
        optimizer = Muon(network, lr=self.learning_rate)
        schedule = WarmupCosineSchedule(optimizer, warmup_steps=max(1, self.steps // 12), t_total=self.steps)
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - 8 / self.steps)))
        for _ in range(self.steps):
            batch = [crops(dict(cases[rng.integers(len(cases))]))[0] for _ in range(self.batch_size)]
            image, label, counts = (
                torch.stack([plain(crop[key]) for crop in batch]).float().to(device)
                for key in ("image", "label", "counts")
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = network(image)
            optimizer.zero_grad()
            self.recipe.loss(logits.float(), label, counts > 0).backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            bar.update()
        trained: nn.Module = average.module
        return trained.eval().requires_grad_(False)


def worth_another_look(lesion: NDArray[np.float32], spacing_mm: float) -> NDArray[np.bool_]:
    """Where a copy should look again: near the suspected pieces of a map (X, Y, Z) that come to `WORTH_A_LOOK`."""
    pieces, found = ndimage.label(lesion >= SUSPECT, structure=TOUCHING)
    worth = np.zeros(found + 1, dtype=bool)
    worth[pieces[lesion >= WORTH_A_LOOK]] = True
    return near(worth[pieces], AROUND_MM, spacing_mm)
