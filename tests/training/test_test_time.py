"""Test-time training: halves interlock, suspects stay whole, nothing outside the copies changes, anatomy is learnt."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from volseg.networks import BMSMMNet, SegMamba, SliceWise
from volseg.phantoms import ct_phantom
from volseg.training.lesion_loss import LesionBalancedDiceCELoss
from volseg.training.own_body import first_half, grown_cases, only_where
from volseg.training.recipes import SliceRecipe, VolumeRecipe
from volseg.training.regions import RegionLoss
from volseg.training.test_time import AdaptingInferer, worth_another_look
from volseg.transforms.bone_context import BoneContextd
from volseg.transforms.ct import BoneMaskd, HounsfieldWindowd, RasIsotropicd
from volseg.transforms.metatensor import to_metatensor


class Look(SimpleInferer):
    """Takes and forgets the occupancy, as the sliding window does; `asked` keeps how much was to be looked at."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __call__(self, inputs, network, *args, occupancy=None, **kwargs):
        assert "hu" not in kwargs
        self.asked.append(None if occupancy is None else int((occupancy > 0).sum()))
        return super().__call__(inputs, network, *args, **kwargs)


class LookThere(Look):
    """At first sight it suspects a place or two (boxes), whatever the network says; nothing else."""

    def __init__(self, *places):
        super().__init__()
        self.places = places

    def __call__(self, inputs, network, *args, occupancy=None, **kwargs):
        found = super().__call__(inputs, network, *args, occupancy=occupancy, **kwargs)
        if len(self.asked) == 1:
            found = torch.cat([torch.full_like(found[:, :1], 4.0), torch.full_like(found[:, 1:], -4.0)], dim=1)
            for place in self.places:
                found[:, 0][:, *place], found[:, 1][:, *place] = -4.0, 4.0
        return found


@dataclass(frozen=True)
class Kind:
    """A kind of network that can be trained on a scan: its recipe, what it is shown, random weights, what it learns."""

    recipe: VolumeRecipe | SliceRecipe
    shown: Callable[[dict], torch.Tensor]
    network: Callable[[bool], nn.Module]
    truth: Callable[[dict], torch.Tensor]


def tiny_volume(suspicious: bool = False) -> nn.Module:
    """Random weights that suspect nothing at first sight, or everything."""
    torch.manual_seed(0)
    network = SegMamba(3, 2, (1, 1, 1, 1), (4, 8, 8, 8), 8).eval()
    with torch.no_grad():
        network.out.conv.conv.bias.copy_(torch.tensor([-2.0, 2.0] if suspicious else [2.0, -2.0]))
    return network


def tiny_slices(suspicious: bool = False) -> nn.Module:
    torch.manual_seed(0)
    slices = BMSMMNet(in_channels=5, widths=[4, 8, 8, 8, 8], heads=["bone", "lesion"])
    network = SliceWise(slices, slice_axis=[0, 1, 2], context=2).eval()
    lesion = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.out_channels == 1][-1]
    with torch.no_grad():
        lesion.bias.fill_(3.0 if suspicious else -3.0)
    return network


def in_windows(data: dict) -> torch.Tensor:
    return BoneContextd()(data)["image"].as_tensor()[None]


def as_picture(data: dict) -> torch.Tensor:
    return HounsfieldWindowd("image", low=-200, high=1000)(data)["image"].as_tensor()[None]


def lesions(case: dict) -> torch.Tensor:
    return torch.as_tensor(case["label"])[None].float()


def bone_and_lesions(case: dict) -> torch.Tensor:
    return torch.cat([(torch.as_tensor(case["bone"])[None] > 0).float(), lesions(case)], dim=1)


KINDS = {
    "volume": Kind(VolumeRecipe(spacing_mm=2.0), in_windows, tiny_volume, lesions),
    "slices": Kind(SliceRecipe(spacing_mm=2.0, crop_size=(32, 32)), as_picture, tiny_slices, bone_and_lesions),
}


@pytest.fixture(params=list(KINDS))
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def body() -> dict:
    """A phantom's middle on a 2 mm grid: image in HU and bone (1, 48, 32, 48)."""
    volume = ct_phantom(np.random.default_rng(3), region="abdomen").volume
    data = RasIsotropicd("image", spacing_mm=2.0, antialias=True)({"image": to_metatensor(volume)})
    data = BoneMaskd()(data)
    middle = np.argwhere(data["bone"][0].numpy() > 0).mean(axis=0).astype(int)
    cut = tuple(
        slice(max(0, min(int(c) - n // 2, size - n)), max(0, min(int(c) - n // 2, size - n)) + n)
        for c, n, size in zip(middle, (48, 32, 48), data["image"].shape[1:], strict=True)
    )
    return {key: value[(slice(None), *cut)] for key, value in data.items()}


@pytest.fixture
def scan(body, kind):
    """The body as a network sees it (1, C, 48, 32, 48), bone and HU (1, 1, 48, 32, 48)."""
    hu = body["image"].as_tensor().clone()[None]
    return kind.shown({key: value.clone() for key, value in body.items()}), body["bone"].as_tensor()[None], hu


def test_mirrored_places_and_neighbouring_slabs_lie_in_different_halves():
    bone = np.zeros((41, 30, 60), bool)
    bone[5:36] = True
    half = first_half(bone, np.zeros_like(bone), 2.0)
    assert (half[:20] != half[:20:-1]).all()
    assert (half[..., :16] != half[..., 16:32]).all() and (half[..., :16] == half[..., 32:48]).all()


def test_what_is_suspected_is_never_cut():
    bone = np.ones((40, 40, 64), bool)
    suspected = np.zeros_like(bone)
    suspected[16:25, 10:14, 12:20] = True  # across the middle and a slab's border
    suspected[30:33, 20, 31:33] = True
    half = first_half(bone, suspected, 2.0)
    for piece in (np.s_[16:25, 10:14, 12:20], np.s_[30:33, 20, 31:33]):
        assert len(np.unique(half[piece])) == 1
    assert len(np.unique(half[14:27, 8:16, 10:22])) == 1, "nor is its rim"
    assert half.any() and not half.all()


def test_the_loss_sees_nothing_outside():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 8, 8, 8, requires_grad=True), (torch.rand(2, 1, 8, 8, 8) > 0.7).float()
    counts = torch.rand(2, 1, 8, 8, 8) > 0.5
    loss = LesionBalancedDiceCELoss(2.0)
    value = loss(*only_where(counts, logits, label))
    value.backward()
    assert (logits.grad[(~counts).expand_as(logits)] == 0).all() and (logits.grad[counts.expand_as(logits)] != 0).any()
    other = torch.where(counts, logits, -3 * logits)
    assert torch.equal(loss(*only_where(counts, other, torch.where(counts, label, 1 - label))), value)


def test_nor_does_a_loss_of_regions():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 16, 16, requires_grad=True), (torch.rand(2, 2, 16, 16) > 0.7).float()
    counts = torch.rand(2, 1, 16, 16) > 0.5
    value = RegionLoss()(*only_where(counts, logits, label))
    value.backward()
    assert (logits.grad[(~counts).expand_as(logits)] == 0).all() and (logits.grad[counts.expand_as(logits)] != 0).all()
    far = RegionLoss()(*only_where(counts, torch.where(counts, logits, 50.0), torch.where(counts, label, 1 - label)))
    assert torch.equal(far, value)
    nothing = RegionLoss()(*only_where(torch.zeros_like(counts), logits, label))
    assert float(nothing.detach()) == pytest.approx(0, abs=0.01), "a crop without a voxel that counts weighs nothing"


def test_a_crop_is_what_the_network_takes_and_is_to_answer(kind, body):
    hu, bone = (body[key][0].numpy() for key in ("image", "bone"))
    case = grown_cases(hu, bone, 2.0, seed=1)[0]
    case |= {"counts": torch.ones_like(case["label"])}
    crops = kind.recipe.crops()
    crops.set_random_state(3)
    crop = crops(case)[0]
    network = kind.network(False)
    logits = network(crop["image"][None].float())
    assert logits.shape[2:] == crop["label"].shape[1:] == crop["counts"].shape[1:]
    value = kind.recipe.loss(logits, torch.as_tensor(crop["label"])[None].float(), crop["counts"][None] > 0)
    assert value.ndim == 0 and torch.isfinite(value)


def test_probabilities_and_logits_undo_each_other(kind):
    logits = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    probabilities = kind.recipe.probabilities(logits)
    torch.testing.assert_close(kind.recipe.probabilities(kind.recipe.logits(probabilities)), probabilities)


def test_cases_are_the_scan_with_lesions_in_its_bone(body):
    hu, bone = (body[key][0].numpy() for key in ("image", "bone"))
    cases = grown_cases(hu, bone, 2.0, seed=1)
    again = grown_cases(hu, bone, 2.0, seed=1)
    assert 5 <= len(cases) <= 20 and any(case["label"].any() for case in cases)
    for case, same in zip(cases, again, strict=True):
        assert torch.equal(case["image"].as_tensor(), same["image"].as_tensor())
        label, image = np.asarray(case["label"][0]) > 0, np.asarray(case["image"][0])
        assert image.dtype == np.int16
        far = np.abs(image - hu) < 1
        assert far.mean() > 0.5, "most of the body stays as it is"
        assert (bone[label] > 0).mean() > 0.5 if label.any() else True


def test_no_steps_and_no_bone_leave_it_to_the_inferer(scan, kind):
    image, bone, hu = scan
    network = kind.network(False)
    own = network(image)
    assert torch.equal(AdaptingInferer(Look(), kind.recipe, steps=0)(image, network, occupancy=bone, hu=hu), own)
    adapting = AdaptingInferer(Look(), kind.recipe, steps=2)
    assert torch.equal(adapting(image, network, occupancy=torch.zeros_like(bone), hu=hu), own)
    assert torch.equal(adapting(image, network), own)
    assert adapting.note == "", "nothing is said of a training that did not take place"
    with pytest.raises(ValueError, match="negative"):
        AdaptingInferer(Look(), kind.recipe, steps=-1)
    with pytest.raises(TypeError, match="Module"):
        adapting(image, lambda x: network(x), occupancy=bone, hu=hu)


RIGHT, LEFT = np.s_[8:12, 14:18, 20:24], np.s_[36:40, 14:18, 20:24]


def test_the_network_and_chance_outside_stay_as_they_were(scan, kind):
    image, bone, hu = scan
    network = kind.network(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    chance, numpy_chance = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    answers = []
    with torch.inference_mode():
        for _ in range(2):
            looking = LookThere(RIGHT, LEFT)
            adapting = AdaptingInferer(looking, kind.recipe, steps=3, batch_size=1, learning_rate=1e-2)
            answers.append(adapting(image, network, occupancy=bone, hu=hu))
            assert torch.equal(torch.get_rng_state(), chance)
            assert (np.random.get_state()[1] == numpy_chance).all()  # noqa: NPY002
            torch.rand(7)
            chance = torch.get_rng_state()
    assert torch.equal(*answers), "the same scan gives the same answer"
    assert "2 x 3 steps in float32" in adapting.note and len(looking.asked) == 3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training and answers[0].shape == network(image).shape


def test_only_what_is_suspected_is_looked_at_again_by_the_copy_that_did_not_learn_it(scan, kind, monkeypatch):
    image, bone, hu = scan
    network = kind.network(False)
    learnt_elsewhere = []
    train = AdaptingInferer._trained

    def watched(self, copy, cases, *args):
        learnt_elsewhere.append(np.asarray(cases[0]["counts"][0]) > 0)
        return train(self, copy, cases, *args)

    monkeypatch.setattr(AdaptingInferer, "_trained", watched)
    looking = LookThere(RIGHT)
    adapting = AdaptingInferer(looking, kind.recipe, steps=3, batch_size=1, learning_rate=1e-2)
    with torch.inference_mode():
        found = adapting(image, network, occupancy=bone, hu=hu)[0]
    first_sight = LookThere(RIGHT)(image, network)[0]
    differs = ((kind.recipe.probabilities(found) - kind.recipe.probabilities(first_sight)).abs() > 1e-5).any(0).numpy()
    near = np.zeros_like(differs)
    near[2:18, 8:24, 14:30] = True  # 12 mm of 2 mm voxels around the place
    assert differs[RIGHT].any() and not differs[~near].any()
    assert len(looking.asked) == 1 + len(learnt_elsewhere) and sum(looking.asked[1:]) == near.sum()
    at_the_place = [learnt[RIGHT] for learnt in learnt_elsewhere]
    assert sum(not learnt.any() for learnt in at_the_place) == 1, "one copy never saw the place"


def test_a_scan_without_a_suspect_costs_no_training(scan, kind):
    image, bone, hu = scan
    looking = LookThere()
    adapting = AdaptingInferer(looking, kind.recipe, steps=3)
    with torch.inference_mode():
        found = adapting(image, kind.network(False), occupancy=bone, hu=hu)
    assert torch.equal(found, LookThere()(image, kind.network(False))) and len(looking.asked) == 1
    assert "not trained" in adapting.note


def test_what_is_worth_another_look():
    lesion = np.zeros((40, 20, 20), np.float32)
    lesion[4:8, 4:8, 4:8] = 0.4  # never sure enough
    lesion[30:32, 10, 10] = [0.35, 0.6]
    again = worth_another_look(lesion, 2.0)
    assert again[24:38, 4:17, 4:17].all() and again.sum() == 14 * 13 * 13
    assert not worth_another_look(np.zeros_like(lesion), 2.0).any()


def test_where_everything_is_suspected_nothing_is_unlearnt(scan, kind):
    image, bone, hu = scan
    network = kind.network(True)
    with torch.inference_mode():
        found = AdaptingInferer(Look(), kind.recipe, steps=3, batch_size=1)(image, network, occupancy=bone, hu=hu)
        seen = kind.recipe.probabilities
        torch.testing.assert_close(seen(found[0]), seen(network(image)[0]), atol=1e-4, rtol=0)


def test_what_is_learnt_in_one_half_helps_in_the_other(body, kind):
    hu, bone = (body[key][0].numpy() for key in ("image", "bone"))
    network = kind.network(True)
    half = first_half(bone > 0, np.zeros(bone.shape, bool), 2.0)
    adapting = AdaptingInferer(Look(), kind.recipe, steps=20, batch_size=2, learning_rate=2e-2)
    copies = adapting.trained_copies(hu, bone, (half, ~half), network)
    fresh = grown_cases(hu, bone, 2.0, seed=99)[:4]
    for copy, searched in zip(copies, (half, ~half), strict=True):
        counts = torch.from_numpy(searched)[None, None]
        before = after = 0.0
        for case in fresh:
            image = kind.shown(case | {"image": case["image"].float()})
            with torch.inference_mode():
                before += float(kind.recipe.loss(network(image), kind.truth(case), counts))
                after += float(kind.recipe.loss(copy(image), kind.truth(case), counts))
        assert after < 0.95 * before
