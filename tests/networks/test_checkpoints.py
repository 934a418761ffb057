"""Renaming a published checkpoint: every key finds its place, or is named."""

from __future__ import annotations

import json

import pytest
import torch

from volseg.networks import SegMamba
from volseg.networks.checkpoints import segmamba_state_dict


@pytest.fixture(scope="module")
def upstream(shared) -> dict[str, torch.Tensor]:
    keys = json.loads((shared / "data/segmamba_reference/keys.json").read_text())
    return {key: torch.full(shape, float(i)) for i, (key, shape) in enumerate(keys)}


@pytest.fixture(scope="module")
def ours() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return SegMamba(2, 3, (1, 1, 1, 1), (48, 8, 16, 24), 32).state_dict()


def test_every_published_key_finds_one_place_of_the_same_shape(upstream, ours):
    renamed = segmamba_state_dict(upstream)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}


def test_the_three_directions_keep_their_own_weights(upstream):
    renamed = segmamba_state_dict(upstream)
    for suffix, direction in (("", "ahead"), ("_b", "back"), ("_s", "across")):
        assert renamed[f"stages.1.layers.0.mamba.{direction}.A_log"] is upstream[f"vit.stages.1.0.mamba.A{suffix}_log"]
        assert (
            renamed[f"stages.1.layers.0.mamba.{direction}.conv.bias"]
            is upstream[f"vit.stages.1.0.mamba.conv1d{suffix}.bias"]
        )


def test_a_later_layer_and_a_lower_decoder_go_where_they_belong():
    assert list(segmamba_state_dict({"vit.stages.2.1.mamba.D_s": 0, "decoder5.transp_conv.conv.weight": 0})) == [
        "stages.2.layers.1.mamba.across.D",
        "ups.0.transp_conv.conv.weight",
    ]


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrappers_and_the_prefix_of_data_parallel_are_taken_off(upstream, wrapper):
    wrapped = {"epoch": 3, wrapper: {f"module.{k}": v for k, v in upstream.items()}}
    assert segmamba_state_dict(wrapped).keys() == segmamba_state_dict(upstream).keys()


def test_unknown_keys_are_named():
    with pytest.raises(
        ValueError, match=r"1 of 2 keys are not SegMamba's: swinViT\.patch_embed\.weight; is this another"
    ):
        segmamba_state_dict({"out.conv.conv.bias": torch.zeros(2), "swinViT.patch_embed.weight": torch.zeros(2)})
