"""A 3D Mask R-CNN in the order data passes through it: boxes, anchors, matching, rpn, roi_heads, mask_rcnn.

No torchvision: MONAI's FeaturePyramidNetwork, BoxCoder and ATSSMatcher where they are good, our own kernels below them.
Boxes are (N, 6) xyzxyz in voxels, half-open: voxel i spans [i, i + 1).
"""

from volseg.detection.anchors import AnchorGrid
from volseg.detection.mask_rcnn import MaskRCNN3D
from volseg.detection.mask_rcnn_network import MaskRCNNNetwork
from volseg.detection.targets import targets_from_instances

__all__ = ["AnchorGrid", "MaskRCNN3D", "MaskRCNNNetwork", "targets_from_instances"]
