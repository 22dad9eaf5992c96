"""The recipe stands in a plan as it was."""

from __future__ import annotations

import json

from jetvit.search.post_training.recipe import CHOICES, Recipe
from jetvit.search.post_training.train import Schedule


def test_a_recipe_is_read_as_it_was_written():
    recipe = Recipe(batch=4, distil=None, task=Schedule(7, 1e-4, warm_up=0.5), expand=3)
    record = json.loads(json.dumps(recipe.to_json()))
    stages = {name: value and Schedule(**value) for name, value in record.items() if isinstance(value, dict)}
    assert Recipe(**(record | stages)) == recipe
    assert Recipe().to_json() != record


def test_recipes_do_not_share_their_schedules():
    assert Recipe() == Recipe()
    assert Recipe().local is not Recipe().local


def test_choices_are_of_both_kinds():
    assert {choice.kind for choice in CHOICES} == {"linear", "window"}
    assert len({choice.label for choice in CHOICES}) == len(CHOICES)
