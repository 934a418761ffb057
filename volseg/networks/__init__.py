"""One paper, one file. nn.Module only: tensors in, tensors out."""

from volseg.networks.bmsmm_net import BMSMMNet
from volseg.networks.mfp_deeplabv3plus import MFPDeepLabV3Plus
from volseg.networks.segmamba import SegMamba

__all__ = ["BMSMMNet", "MFPDeepLabV3Plus", "SegMamba"]
