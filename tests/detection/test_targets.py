"""One instance label map makes boxes, ids and ignore flags; N = 0 is a good number of lesions."""

import pytest
import torch

from volseg.detection.targets import instances_from_pieces, stacked, targets_from_instances


def test_boxes_are_half_open_and_hold_their_instance():
    labels = torch.zeros(1, 10, 12, 14, dtype=torch.uint8)
    labels[0, 2:5, 3:4, 6:9] = 7
    labels[0, 5:9, 3:4, 6:9] = 2  # touches the other: still two lesions
    target = targets_from_instances(labels)
    assert target["id"].tolist() == [2, 7]
    assert target["box"].tolist() == [[5, 3, 6, 9, 4, 9], [2, 3, 6, 5, 4, 9]]
    assert target["label"].tolist() == [0, 0]
    assert target["ignore"].tolist() == [False, False]
    assert target["mask"].shape == (1, 10, 12, 14)


def test_an_instance_less_than_a_quarter_visible_is_ignored():
    labels = torch.zeros(8, 8, 8, dtype=torch.int32)
    labels[0:2, 0:2, 0:2] = 1  # 8 voxels of 40: .2
    labels[5:8, 5:8, 5:8] = 2  # 27 of 40
    target = targets_from_instances(labels, sizes=torch.tensor([0, 40, 40]))
    assert target["ignore"].tolist() == [True, False]
    assert targets_from_instances(labels)["ignore"].tolist() == [False, False], "unknown sizes cut nothing"


def test_pieces_of_one_value_become_lesions_and_a_value_of_one_piece_keeps_its_number():
    labels = torch.zeros(1, 9, 9, 9, dtype=torch.uint8)
    labels[0, 0, 0, 0:2] = 1
    labels[0, 4:7, 4:7, 4:7] = 1  # the largest keeps the number
    labels[0, 7, 7, 7] = 1  # touches it by a corner only: one piece
    labels[0, 0, 8, 8] = 1
    labels[0, 4, 4, 7:9] = 3  # touches value 1: still another lesion
    instances = instances_from_pieces(labels)
    assert instances.dtype == torch.int32 and instances.shape == labels.shape
    assert torch.equal(instances > 0, labels > 0)
    at = {place: int(instances[0][place]) for place in ((4, 4, 4), (7, 7, 7), (0, 0, 0), (0, 8, 8), (4, 4, 8))}
    assert list(at.values()) == [1, 1, 4, 5, 3]
    assert torch.equal(instances_from_pieces(instances), instances)
    assert targets_from_instances(instances)["id"].tolist() == [1, 3, 4, 5]


def test_number_256_is_no_background():
    labels = torch.zeros(1, 5, 5, 600, dtype=torch.uint8)
    labels[0, 2, 2, ::2] = 1
    instances = instances_from_pieces(labels)
    assert instances.max() == 300 and torch.equal(instances > 0, labels > 0)
    assert not instances_from_pieces(torch.zeros(1, 2, 2, 2)).any()


def test_no_lesion_gives_six_columns_and_no_row():
    target = targets_from_instances(torch.zeros(1, 5, 5, 5))
    assert target["box"].shape == (0, 6)
    assert [len(target[k]) for k in ("label", "id", "ignore")] == [0, 0, 0]


def test_a_one_hot_map_is_refused():
    with pytest.raises(ValueError, match="instance label map"):
        targets_from_instances(torch.zeros(2, 5, 5, 5))


def test_a_list_of_images_becomes_a_batch_and_unequal_ones_are_named():
    assert stacked([torch.zeros(1, 4, 4, 4)] * 3).shape == (3, 1, 4, 4, 4)
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\), \(1, 4, 4, 5\)"):
        stacked([torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 5)])
    with pytest.raises(ValueError, match="B, C, X, Y, Z"):
        stacked(torch.zeros(1, 4, 4, 4))
