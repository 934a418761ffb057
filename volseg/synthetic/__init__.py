"""Synthetic hospitals: what differs between sites, their patients, their folders, and a page to judge realism by."""

from volseg.synthetic.cohort import write_cohort
from volseg.synthetic.gallery import GalleryOptions, write_gallery
from volseg.synthetic.patients import CohortOptions
from volseg.synthetic.sites import SITES, Site, find_site

__all__ = ["SITES", "CohortOptions", "GalleryOptions", "Site", "find_site", "write_cohort", "write_gallery"]
