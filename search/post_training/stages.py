"""The stages of a search, in order.

Each takes the set-up and the results of earlier stages as arguments, and returns its own result.
A stage that trains resumes from the run's folder, and returns at once where it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jetvit.cost_model import FULL
from jetvit.search.calibration.model_latency import warn_of_doubts, warn_of_noise
from jetvit.search.post_training.confirm import Confirmation, refuse_slower
from jetvit.search.post_training.end_to_end import distil, supernet_distillation, train_head, train_on_task
from jetvit.search.post_training.evaluation import Evaluator
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.latencies import AGAIN, measured_here
from jetvit.search.post_training.local_distillation import local_distillation
from jetvit.search.post_training.path_search import Evaluations, PathSearch, Searched
from jetvit.search.post_training.paths import Alternatives
from jetvit.search.post_training.report import MARGIN, report
from jetvit.search.post_training.scores import Scores, score_alone, survivors
from jetvit.search.post_training.setup import Setup
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.supernet import Path
from jetvit.search.post_training.train import History

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A model of its own weights, trained, and the extractor of its features."""

    student: Student
    extractor: FeatureExtractor


def train_task_head(setup: Setup) -> History | None:
    """Train the head of the task on the original model, and freeze it.

    Returns:
        the losses; None where the head was given, has no labels to learn from, or is the model's own.
    """
    head, history = setup.teacher.head, None
    if head is None:
        return None
    if setup.request.head is None and setup.task.labelled:
        batch, schedule = setup.captured.batch, setup.recipe.head
        history = train_head(setup.teacher, setup.task, setup.data.train, batch, schedule, setup.run)
    head.requires_grad_(False).eval()
    return history


def distil_choices(setup: Setup) -> History:
    """Train every choice at every site alone, in place."""
    return local_distillation(setup.net, setup.stream("local"), setup.captured.inputs, setup.recipe.local, setup.run)


def score_choices(setup: Setup, alternatives: Alternatives) -> Scores:
    """Measure the error of the features with each choice alone in the model."""
    return score_alone(
        setup.net,
        setup.extractor,
        setup.teacher,
        alternatives,
        setup.stream("score"),
        setup.recipe.score_steps,
        setup.run,
    )


def select_survivors(setup: Setup) -> Alternatives:
    """Keep the best few choices of each site, by error and latency."""
    return survivors(score_choices(setup, setup.alternatives), setup.latency, setup.recipe.survivors)


def distil_paths(setup: Setup, alternatives: Alternatives) -> History:
    """Train random paths of the supernet, in place, to match the features of the original model."""
    return supernet_distillation(
        setup.net,
        setup.extractor,
        setup.teacher,
        setup.stream("supernet"),
        alternatives,
        setup.recipe.drawn_full,
        setup.recipe.supernet,
        setup.run,
    )


def find_path(setup: Setup, alternatives: Alternatives, scores: Scores) -> Searched:
    """Search for the best path within the bounds, and write trace.json.

    Raises:
        PlanError: no path keeps the budget, or the best one is slower than the original.
    """

    def measure(path: Path) -> float:
        with setup.net.path(path):
            return setup.metric(setup.extractor, "rating paths")

    found = PathSearch(
        alternatives,
        scores,
        setup.latency,
        Evaluations(measure, setup.run.folder, "supernet"),
        setup.recipe,
        limit_ms=setup.limit_ms,
        max_full=setup.max_full,
        seed=setup.request.seed,
    )()
    if _all_full(found.best.path):
        log.warning("no path is as good as the original: every attention stays full")
    else:
        refuse_slower(setup.latency.full_ms, found.best.latency_ms, "by what the attentions take")
    if setup.run.folder is not None:
        trace = {
            "task": setup.task.name,
            "metric": setup.task.metric,
            "sites": list(alternatives),
            "scores": {name: {each.label: value for each, value in some.items()} for name, some in scores.items()},
            **found.to_json(),
        }
        setup.run.folder.keep("trace", trace)
    return found


def confirm_path(setup: Setup, path: Path) -> Confirmation | None:
    """Time the model on a path beside the original.

    Returns:
        the timings; None where the latencies are a table's, or every attention stays full.
    Raises:
        PlanError: the model on the path is slower than the original.
    """
    run = setup.run
    if setup.request.costs is not None or _all_full(path):
        return None
    weights = setup.net.plan(path).weights  # by all processes: each may hold a part
    kept: Any = run.folder.kept("confirmation") if run.folder is not None else None
    if run.processes.first and kept is None:
        kept = Confirmation.of(measured_here(setup.captured, run.progress), path, weights).to_json()
        if run.folder is not None:
            run.folder.keep("confirmation", kept)
    gathered: list[Any] = run.processes.gather([kept] if run.processes.first else [])
    confirmation = Confirmation.from_json(gathered[0])
    warn_of_doubts(confirmation.doubts, AGAIN)
    if not confirmation.doubts:
        if confirmation.speedup[2] < 1:
            refuse_slower(confirmation.full_ms, confirmation.plan_ms, "measured as whole models")
        warn_of_noise(confirmation.speedup, confirmation.plan_ms, confirmation.full_ms)
    return confirmation


def train_plan(setup: Setup, path: Path) -> Trained:
    """Train all weights of the model on a path: by the features of the original, then on the task."""
    student = Student(setup.captured.program, setup.net.plan(path))
    trained = Trained(student, setup.extractor_of(student))
    schedule = setup.recipe.distil
    if schedule is not None:
        stream = setup.stream("distil", setup.recipe.flip)
        distil(student, trained.extractor, setup.teacher, stream, schedule, setup.run, _feature_error(setup, trained))
    _train_on_task(setup, "task", trained)
    return trained


def train_control(setup: Setup) -> Trained | None:
    """Give the original model the same training on the task; None where a plan gets none."""
    if setup.recipe.task is None or not setup.task.labelled:
        return None
    student = Student(setup.captured.program, setup.net.plan({}))
    trained = Trained(student, setup.extractor_of(student))
    _train_on_task(setup, "control", trained)
    return trained


def report_metrics(setup: Setup, plan: Trained, control: Trained | None) -> dict[str, Any]:
    """Evaluate the original, the plan and the control on the test images, which are read once."""
    extractors = {"original": setup.teacher, "plan": plan.extractor}
    if control is not None:
        extractors["control"] = control.extractor
    evaluate = Evaluator(setup.teacher, setup.task, setup.data.test, setup.captured.batch, setup.run)
    results = {name: evaluate(each, f"reading the test images: {name}") for name, each in extractors.items()}
    return report(setup.task, results, setup.data.test.groups, MARGIN)


def _train_on_task(setup: Setup, stage: str, trained: Trained) -> None:
    """Train a model on the task, if the recipe says so and there are labels."""
    schedule = setup.recipe.task
    if schedule is None or not setup.task.labelled:
        return
    stream = setup.stream("task", setup.recipe.flip)
    train_on_task(
        stage, trained.student, trained.extractor, setup.task, stream, schedule, setup.run, _task_error(setup, trained)
    )


def _feature_error(setup: Setup, trained: Trained) -> Callable[[], float]:
    return lambda: float(setup.select(trained.extractor, "validating").errors.mean())


def _task_error(setup: Setup, trained: Trained) -> Callable[[], float]:
    return lambda: -setup.metric(trained.extractor, "validating")


def _all_full(path: Path) -> bool:
    return all(choice == FULL for choice in path.values())
