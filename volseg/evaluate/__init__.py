"""Folders and cohorts on disk -> evaluations on disk: what `volseg evaluate` and `volseg validate` run."""

from volseg.evaluate.compare import EvaluateOptions
from volseg.evaluate.folders import evaluate_folders
from volseg.evaluate.freeze import ValidateOptions
from volseg.evaluate.sites import checked_cohort, validate_sites

__all__ = ["EvaluateOptions", "ValidateOptions", "checked_cohort", "evaluate_folders", "validate_sites"]
