"""Choosing a plan: training-free calibration, and the check of a plan on new images."""

from jetvit.search.calibration import calibrate
from jetvit.search.check import CheckReport, check_plan
from jetvit.search.drift import Drift, agreement

__all__ = ["CheckReport", "Drift", "agreement", "calibrate", "check_plan"]
