"""What lets MONAI's SupervisedTrainer train a detector."""

import torch

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


def test_the_loss_is_the_sum_of_the_detectors_losses():
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(2.5)}
    total = SummedLoss()(losses, None)
    assert float(total) == 3.5
    assert loss_parts({"pred": losses, "loss": total}) == {"loss": 3.5, "a": 1.0, "b": 2.5}
