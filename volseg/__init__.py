"""volseg: finds, outlines and explains bone metastases in 3D medical images.

Importing the package is cheap: torch and MONAI are loaded only by the rooms that compute with them.
"""

__version__ = "0.5.0"

__all__ = ["__version__"]
