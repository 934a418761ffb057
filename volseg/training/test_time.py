"""Test-time training: before a network searches a CT, it learns what is normal in that very CT. No label is needed.

Enters: a preprocessed image, its HU and bone mask, a trained network. Leaves: logits, as of any inferer. Synthetic
lesions are grown in the patient's own bone, everything else counts as healthy, and a copy of the network is trained on
that for some minutes: joints, cartilage and loose marrow that looked like lesions in a body never seen no longer do.

Whatever is marked must not have been learnt as healthy, or metastases would be unlearnt with the anatomy. So the body
is cut into two halves (`first_half`), and each half is searched by a copy that was trained in the other one alone. They
interlock: what is right in one half is left in the other, and neighbouring slabs alternate, so that anatomy, which
repeats from side to side and from vertebra to vertebra, is seen in both, and a metastasis in one: what the network
suspects at first sight is never cut. The copies' answer and the network's own are averaged.

Sources: test-time training, Sun et al., ICML 2020 (arXiv 1909.13231); cross-fitting, Chernozhukov et al. 2018 (arXiv
1608.00060); lesions as in `volseg.transforms.synthesis`. The combination is our own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from monai.optimizers import WarmupCosineSchedule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from volseg.training.muon import Muon
from volseg.training.own_body import Case, first_half, grown_cases, plain
from volseg.training.recipes import Recipe

# A voxel of at least this probability is suspected at first sight.
SUSPECT = 0.3


class AdaptingInferer(Inferer):
    """Searches with `inferer`, after test-time training of the network on the scan that is searched.

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
    gives it, hu (B, 1, X, Y, Z). Without bone in view, nothing is trained. Logits (B, 2, X, Y, Z) come out, of the mean
    probabilities.
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
        self._learnt = False

    @property
    def note(self) -> str:
        """What to tell the reader of the last result; empty if nothing was trained for it."""
        how = f"2 x {self.steps} steps in {self.precision} on synthetic lesions grown in its bone"
        return f"before the search the network was trained on this scan itself: {how}" if self._learnt else ""

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
        self._learnt = False
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
            self._learnt = True
            probability = self.recipe.probabilities(own[i])
            first = first_half(bone > 0, plain(probability[1]).cpu().numpy() >= SUSPECT, self.recipe.spacing_mm)
            copies = self.trained_copies(plain(hu[i, 0]).cpu().numpy(), bone, first, network)
            one, other = (
                self.inferer(inputs[i : i + 1], searcher, *args, occupancy=occupancy[i : i + 1], **kwargs)[0]
                for searcher in copies
            )
            where = torch.from_numpy(first).to(own.device)
            adapted = torch.where(where, self.recipe.probabilities(one), self.recipe.probabilities(other))
            logits[i] = self.recipe.logits((probability + adapted) / 2)
        return logits

    def trained_copies(
        self, hu: NDArray, bone: NDArray[np.uint8], first: NDArray[np.bool_], network: nn.Module
    ) -> tuple[nn.Module, nn.Module]:
        """Two copies of a network after training in a CT (X, Y, Z) on the working grid.

        One was trained where `first` is False and is to search where it is True, the other the other way round.
        """
        device = next(network.parameters()).device
        copies = []
        disable = None if self.progress is None else not self.progress
        bar = tqdm(total=2 * self.steps, desc="growing lesions to learn from", unit="step", disable=disable)
        with bar, torch.inference_mode(False), torch.enable_grad():
            cases = grown_cases(hu, bone, self.recipe.spacing_mm, self.seed)
            bar.set_description("learning this body")
            bar.unpause()
            for half in (first, ~first):
                learnt_from = torch.from_numpy((~half).astype(np.uint8))[None]
                here = [case | {"counts": learnt_from} for case in cases]
                copies.append(self._trained(copy.deepcopy(network), here, device, bar))
        return copies[0], copies[1]

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
