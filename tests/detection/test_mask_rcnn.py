"""The detector's calling convention, its losses on every kind of batch, and what it refuses."""

import math

import pytest
import torch
from monai.data import MetaTensor

from volseg.detection import AnchorGrid, MaskRCNN3D, MaskRCNNNetwork, targets_from_instances
from volseg.detection.mask_rcnn import lesion_probability
from volseg.detection.rpn import RPNSettings
from volseg.errors import InputError, UsageError

LOSSES = {"rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_mask", "semantic"}


def tiny(**settings) -> MaskRCNN3D:
    torch.manual_seed(0)
    network = MaskRCNNNetwork(
        depths=(1, 1, 1, 1),
        dims=(8, 16, 16, 16),
        kernel_size=3,
        first_level=0,
        fpn_channels=16,
        head_channels=16,
        mask_channels=8,
        semantic_channels=8,
    )
    return MaskRCNN3D(network, AnchorGrid([[3, 4.5], [6, 9], [12, 18], [24, 36]], 1.0), **settings)


def labelled() -> torch.Tensor:
    labels = torch.zeros(1, 32, 32, 32, dtype=torch.int32)
    labels[0, 4:12, 4:10, 4:12] = 1
    labels[0, 20:26, 18:26, 20:27] = 2
    return labels


@pytest.mark.parametrize("matcher", ["iou", "atss"])
def test_training_gives_six_finite_losses_that_reach_every_weight(matcher):
    detector = tiny(rpn=RPNSettings(matcher=matcher))
    losses = detector(torch.randn(2, 1, 32, 32, 32), [targets_from_instances(labelled())] * 2)
    assert losses.keys() == LOSSES
    assert all(math.isfinite(float(v.detach())) for v in losses.values())
    sum(losses.values()).backward()
    without = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_what_monais_loaders_hand_over_is_the_same_as_plain_tensors():
    torch.manual_seed(1)
    image, labels = torch.randn(1, 32, 32, 32), labelled()
    found = []
    for wrap in (torch.as_tensor, MetaTensor):
        detector = tiny()
        torch.manual_seed(2)
        losses = detector([wrap(image)], [targets_from_instances(wrap(labels))])
        sum(losses.values()).backward()
        detections = detector.eval()([wrap(image)])
        found.append(([torch.as_tensor(p.grad) for p in detector.parameters()], torch.as_tensor(detections[0]["box"])))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("some", [(), (0,)], ids=["no image has a lesion", "one image has"])
def test_images_without_lesions_train_without_nan(some):
    detector = tiny()
    empty = targets_from_instances(torch.zeros(1, 32, 32, 32))
    targets = [targets_from_instances(labelled()) if i in some else empty for i in range(2)]
    losses = detector(torch.randn(2, 1, 32, 32, 32), targets)
    assert all(math.isfinite(float(v.detach())) for v in losses.values())
    if not some:
        assert [losses[name].item() for name in ("rpn_box", "roi_box", "roi_mask")] == [0, 0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in detector.parameters())


def test_gradients_are_finite_under_bfloat16():
    detector = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector([torch.randn(1, 32, 32, 32)], [targets_from_instances(labelled())])
    assert all(v.dtype == torch.float32 for v in losses.values())
    sum(losses.values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in detector.parameters())


def test_the_dense_branch_takes_a_loss_of_the_caller_s():
    class Count(torch.nn.Module):
        def forward(self, logits, lesion):
            assert logits.shape == (1, 2, 32, 32, 32) and set(lesion.unique().tolist()) == {0, 1}
            return logits.sum() * 0 + 5

    detector = MaskRCNN3D(tiny().network, tiny().anchors, semantic_loss=Count(), weights={"semantic": 2.0})
    losses = detector([torch.randn(1, 32, 32, 32)], [targets_from_instances(labelled())])
    assert losses["semantic"].item() == 10


def test_a_lesion_that_only_the_dense_branch_sees_reaches_the_second_stage():
    detector = tiny().eval()
    with torch.no_grad():  # the dense branch calls everything lesion, the RPN sees nothing at all
        detector.network.semantic_head.out.bias.copy_(torch.tensor([-9.0, 9.0]))
        maps = detector.network(torch.randn(1, 1, 32, 32, 32))
        lesion = lesion_probability(maps.semantic)
        blind = (
            [o[:, :0] for o in maps.objectness],
            [d[:, :0] for d in maps.deltas],
            [maps.semantic.new_zeros(0, 6)] * 4,
        )
        boxes, scores = detector._proposals(*blind, lesion, most=10)[0]
        detector.semantic_thresholds = ()
        without, _ = detector._proposals(*blind, lesion, most=10)[0]
    assert boxes.unique(dim=0).tolist() == [[0, 0, 0, 32, 32, 32]] and float(scores[0]) > 0.99
    assert len(without) == 0


def test_what_other_networks_see_is_proposed_in_place_of_the_dense_branch():
    detector = tiny().eval()
    beside = torch.full((1, 2, 32, 32, 32), 0.01)
    beside[..., 8:20, 10:22, 4:18] = 0.99
    beside[:, 1] = 0.5
    image = torch.randn(1, 1, 32, 32, 32)
    _, lesion = detector.predict(image, beside)
    torch.testing.assert_close(torch.logit(lesion), torch.logit(beside[:, 0]) / 2)
    with torch.no_grad():
        maps = detector.network(image)
        blind = (
            [o[:, :0] for o in maps.objectness],
            [d[:, :0] for d in maps.deltas],
            [maps.semantic.new_zeros(0, 6)] * 4,
        )
        boxes, _ = detector._proposals(*blind, lesion, most=10)[0]
    assert [8, 10, 4, 20, 22, 18] in boxes.tolist()


def test_evaluation_gives_monais_keys_and_masks_for_every_box():
    detector = tiny().eval()
    found = detector(torch.randn(2, 1, 32, 32, 32))
    assert len(found) == 2
    for one in found:
        n = len(one["box"])
        assert one["box"].shape == (n, 6) and one["mask"].shape == (n, 28, 28, 28)
        assert len(one["label"]) == len(one["label_scores"]) == n
        assert bool((one["label_scores"].diff() <= 0).all()), "best first"
        assert bool((one["box"] >= 0).all()) and bool((one["box"] <= 32).all())


def test_evaluation_twice_is_the_same_and_does_not_depend_on_the_batch():
    detector = tiny().eval()
    images = torch.randn(3, 1, 32, 32, 32)
    once, again = detector(images), detector(images)
    alone = [detector(image[None])[0] for image in images]
    for a, b, c in zip(once, again, alone, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
        assert len(a["box"]) == len(c["box"]) and torch.allclose(a["box"], c["box"], atol=1e-3)


def test_a_voxel_of_nan_costs_its_own_image_only(caplog):
    detector = tiny().eval()
    images = torch.randn(2, 1, 32, 32, 32)
    sound = detector(images)
    images[1, 0, 3, 3, 3] = float("nan")
    found = detector(images)
    assert len(sound[0]["box"]) > 0
    assert all(torch.equal(found[0][key], sound[0][key]) for key in sound[0])
    assert found[1]["box"].shape == (0, 6) and "propose nothing" in caplog.text


def test_images_of_odd_sizes_are_taken():
    detector = tiny()
    labels = torch.zeros(1, 35, 29, 33, dtype=torch.int32)
    labels[0, 4:12, 4:10, 4:12] = 1
    losses = detector(torch.randn(1, 1, 35, 29, 33), [targets_from_instances(labels)])
    assert all(math.isfinite(float(v.detach())) for v in losses.values())
    assert len(detector.eval()(torch.randn(1, 1, 35, 29, 33))) == 1


def test_a_users_boxes_are_enough_with_the_instance_map():
    target = {"box": torch.tensor([[4.0, 4, 4, 12, 10, 12], [20, 18, 20, 26, 26, 27]]), "mask": labelled()}
    torch.manual_seed(1)
    image = torch.randn(1, 1, 32, 32, 32)
    losses = tiny()(image, [target])
    same = tiny()(image, [targets_from_instances(labelled())])
    assert losses["rpn_objectness"].item() == pytest.approx(same["rpn_objectness"].item(), abs=0.2)


def test_the_four_wrong_uses_are_refused_in_words():
    detector, image = tiny(), torch.randn(1, 1, 32, 32, 32)
    with pytest.raises(UsageError, match="needs targets"):
        detector(image)
    with pytest.raises(UsageError, match="no 'mask'"):
        detector(image, [{"box": torch.zeros(0, 6)}])
    with pytest.raises(UsageError, match="does not fit the image"):
        detector(image, [targets_from_instances(torch.zeros(1, 16, 16, 16))])
    with pytest.raises(InputError, match="reversed"):
        detector(image, [{"box": torch.tensor([[9.0, 9, 9, 3, 12, 12]]), "mask": labelled()}])


def test_anchors_that_do_not_fit_the_network_are_refused():
    network = tiny().network
    with pytest.raises(UsageError, match="3 levels"):
        MaskRCNN3D(network, AnchorGrid([[3, 4.5], [6, 9], [12, 18]]))
    with pytest.raises(UsageError, match="anchors_per_location"):
        MaskRCNN3D(network, AnchorGrid([[3.0], [6.0], [12.0], [24.0]]))
