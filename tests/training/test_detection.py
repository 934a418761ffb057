"""What lets MONAI's SupervisedTrainer train a detector."""

import json
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from volseg.training.detection import WHOLE_SIZES, SummedLoss, WholeSizesd, detection_batch, loss_parts


def test_sizes_before_the_crop_decide_what_is_ignored_after_it():
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    labels[0, :, 0:2, 0:2] = 3
    whole = WholeSizesd()({"label": labels})
    assert whole[WHOLE_SIZES][3] == 32 and whole[WHOLE_SIZES][:3].tolist() == [0, 0, 0]
    batch = {
        "image": torch.zeros(1, 1, 1, 8, 8),
        "label": labels[None, :, 7:],  # 4 of 32 voxels: an eighth
        WHOLE_SIZES: whole[WHOLE_SIZES][None],
    }
    _, _, (targets,), _ = detection_batch(batch, "cpu")
    assert targets[0]["id"].tolist() == [3] and targets[0]["ignore"].tolist() == [True]
    del batch[WHOLE_SIZES]
    assert detection_batch(batch, "cpu")[2][0][0]["ignore"].tolist() == [False]


def test_lesions_of_a_binary_mask_have_boxes_and_sizes_of_their_own():
    """Both spots of one value were one box over both, and half of what counted was out of every crop."""
    labels = MetaTensor(torch.zeros(1, 20, 20, 20, dtype=torch.uint8), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    labels[0, 2:5, 2:5, 2:5] = 1
    labels[0, 12:18, 12:18, 12:18] = 1
    whole = WholeSizesd()({"label": labels})
    assert whole[WHOLE_SIZES][:4].tolist() == [0, 216, 27, 0]
    assert torch.equal(whole["label"].affine, labels.affine) and whole["label"].dtype == torch.int32
    crop = whole["label"].as_tensor()[None, :, :15, :15, :15]
    batch = {"image": torch.zeros(crop.shape), "label": crop, WHOLE_SIZES: whole[WHOLE_SIZES][None]}
    target = detection_batch(batch, "cpu")[2][0][0]
    assert target["id"].tolist() == [1, 2]
    assert target["box"].tolist() == [[12, 12, 12, 15, 15, 15], [2, 2, 2, 5, 5, 5]]
    assert target["ignore"].tolist() == [True, False], "27 of 216 voxels are an eighth; the other is whole"


def test_the_bundle_caches_labels_in_which_256_is_a_lesion():
    path = Path(__file__).parents[2] / "bundles/bone_ct_mask_rcnn_detection/configs/train.json"
    transforms = json.loads(path.read_text())["deterministic_transforms"]
    assert [t["_target_"].rsplit(".", 1)[-1] for t in transforms].index("WholeSizesd") < len(transforms) - 1
    parser = ConfigParser({"imports": ["$import torch"], "cast": transforms[-1]})
    label = torch.full((1, 2, 2, 2), 256, dtype=torch.int32)
    cast = parser.get_parsed_content("cast")({"image": label, "label": label})["label"]
    assert cast.unique().tolist() == [256]  # a number: torch would make 256 a uint8, too, and 0 == 0


def test_the_loss_is_the_sum_of_the_detectors_losses():
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(2.5)}
    total = SummedLoss()(losses, None)
    assert float(total) == 3.5
    assert loss_parts({"pred": losses, "loss": total}) == {"loss": 3.5, "a": 1.0, "b": 2.5}
