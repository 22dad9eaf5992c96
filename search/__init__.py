"""Choosing a plan: training-free calibration, post-training search, and the check of a plan on new images."""

from jetvit.search.calibration import calibrate
from jetvit.search.check import CheckReport, check_plan
from jetvit.search.data import Sample, Split, Splits
from jetvit.search.depth import Depth
from jetvit.search.drift import Drift, agreement
from jetvit.search.features import Features
from jetvit.search.post_training import search
from jetvit.search.recipe import Recipe
from jetvit.search.segmentation import Segmentation
from jetvit.search.task import Task
from jetvit.search.task_check import TaskReport, check_task
from jetvit.search.train import Schedule

__all__ = [
    "CheckReport",
    "Depth",
    "Drift",
    "Features",
    "Recipe",
    "Sample",
    "Schedule",
    "Segmentation",
    "Split",
    "Splits",
    "Task",
    "TaskReport",
    "agreement",
    "calibrate",
    "check_plan",
    "check_task",
    "search",
]
