"""Choosing a plan: training-free calibration, post-training search, and the check of a plan on new images."""

from jetvit.search.calibration.calibrate import calibrate
from jetvit.search.calibration.check import CheckReport, check_plan
from jetvit.search.data.splits import Sample, Split, Splits
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.request import SearchRequest
from jetvit.search.post_training.search import search
from jetvit.search.post_training.task_check import TaskReport, check_task
from jetvit.search.post_training.train import Schedule
from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.drift import Drift, agreement
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation
from jetvit.search.tasks.task import Task

__all__ = [
    "CheckReport",
    "Depth",
    "Drift",
    "Features",
    "Recipe",
    "Sample",
    "Schedule",
    "SearchRequest",
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
