"""MobileNetV2 as a backbone: its published size, its strides, the names of its weights."""

from __future__ import annotations

import torch

from volseg.networks.mobilenetv2 import CHANNELS, MobileNetV2


def test_without_its_last_convolution_it_has_the_published_number_of_parameters():
    # 3,504,872 with the classifier (1280 -> 1000) and the 320 -> 1280 convolution, as published for width 1.0
    count = sum(p.numel() for p in MobileNetV2().parameters())
    assert count == 1_811_712
    assert count + 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000 == 3_504_872


def test_its_maps_shrink_to_a_sixteenth_and_no_further():
    maps = MobileNetV2(1)(torch.randn(2, 1, 64, 48))
    assert [m.shape[1] for m in maps] == list(CHANNELS)
    assert [64 // m.shape[2] for m in maps] == [2] * 2 + [4] * 2 + [8] * 3 + [16] * 11
    assert all(3 * m.shape[2] == 4 * m.shape[3] for m in maps)


def test_dilation_stands_in_for_the_stride_only_after_the_block_that_lost_it():
    depthwise = {
        i: next(m for m in feature.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1).dilation[0]
        for i, feature in enumerate(MobileNetV2().features)
        if i
    }
    assert [i for i, dilation in depthwise.items() if dilation == 2] == [15, 16, 17]


def test_its_weights_bear_torchvisions_names():
    shapes = {key: tuple(value.shape) for key, value in MobileNetV2().state_dict().items()}
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.1.conv.0.0.weight"] == (32, 1, 3, 3)  # no widening in the first block
    assert shapes["features.1.conv.1.weight"] == (16, 32, 1, 1)
    assert shapes["features.17.conv.0.0.weight"] == (960, 160, 1, 1)
    assert shapes["features.17.conv.1.1.running_mean"] == (960,)
    assert shapes["features.17.conv.2.weight"] == (320, 960, 1, 1)
    assert shapes["features.17.conv.3.bias"] == (320,)
