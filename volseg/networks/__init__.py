"""One paper, one file. nn.Module only: tensors in, tensors out."""

from volseg.networks.segmamba import SegMamba

__all__ = ["SegMamba"]
