"""The costs of each choice, and the `Plan` that records the choice at every attention site."""

from jetvit.cost_model.measuring.timing import AttentionShape, Latency, measure_choices, time_choice
from jetvit.cost_model.plans.base_weights import (
    base_record,
    base_warning,
    check_base,
    projection_weights,
    sample_base,
    sample_tensor,
)
from jetvit.cost_model.plans.choice import FULL, Choice
from jetvit.cost_model.plans.entries import FrontPoint, Measured, SitePlan
from jetvit.cost_model.plans.fingerprint import Fingerprint, SiteShape
from jetvit.cost_model.plans.names import NameMatch, match_names
from jetvit.cost_model.plans.plan import Plan
from jetvit.cost_model.plans.renaming import renamed_matches
from jetvit.cost_model.predicting.device_costs import DeviceCosts

__all__ = [
    "FULL",
    "AttentionShape",
    "Choice",
    "DeviceCosts",
    "Fingerprint",
    "FrontPoint",
    "Latency",
    "Measured",
    "NameMatch",
    "Plan",
    "SitePlan",
    "SiteShape",
    "base_record",
    "base_warning",
    "check_base",
    "match_names",
    "measure_choices",
    "projection_weights",
    "renamed_matches",
    "sample_base",
    "sample_tensor",
    "time_choice",
]
