"""One paper, one file. nn.Module only: tensors in, tensors out."""

from volseg.networks.any_channels import AnyChannels
from volseg.networks.bmsmm_net import BMSMMNet
from volseg.networks.convnextv2 import ConvNeXtV2
from volseg.networks.mfp_deeplabv3plus import MFPDeepLabV3Plus
from volseg.networks.segmamba import SegMamba
from volseg.networks.slicewise import SliceWise
from volseg.networks.spine_unet import SpineUNet

__all__ = ["AnyChannels", "BMSMMNet", "ConvNeXtV2", "MFPDeepLabV3Plus", "SegMamba", "SliceWise", "SpineUNet"]
