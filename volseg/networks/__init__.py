"""One paper, one file. nn.Module only: tensors in, tensors out."""

from volseg.networks.mfp_deeplabv3plus import MFPDeepLabV3Plus
from volseg.networks.segmamba import SegMamba

__all__ = ["MFPDeepLabV3Plus", "SegMamba"]
