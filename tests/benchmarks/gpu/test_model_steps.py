"""Models that are compiled in parallel: their processes get ready early, wait until kernels are tuned, and report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end.variants import ANCHOR, FIRST
from benchmarks.gpu import model_steps
from benchmarks.gpu.campaign import Campaign, Cost, Step, TimeOver
from benchmarks.gpu.model_steps import Models
from benchmarks.gpu.processes import ROOT, Task
from benchmarks.gpu.schedule import is_warm
from benchmarks.gpu.steps import all_steps

KNOWN = {"device": "CPU", "torch": "2", "triton": "3", "code": "abc"}
PROGRAM = """
import json, pathlib, sys, time
from benchmarks.gpu.processes import end_with_parent
end_with_parent()
given = json.loads(sys.argv[1])
ready = pathlib.Path(given["go"]).parent / (given["model"] + given["variant"] + ".ready")
ready.touch()
while not pathlib.Path(given["go"]).exists():
    time.sleep(0.05)
print("compiled", given["model"], given["variant"], given["size"], given["batch"])
sys.exit(given["model"] == "broken")
"""


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """A campaign whose processes compile nothing."""
    (tmp_path / "a_compiler.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(model_steps, "Task", lambda name, module, arguments: Task(name, "a_compiler", arguments))
    made = Campaign(tmp_path / "out", torch.device("cpu"), True, KNOWN)
    made.caches.mkdir(parents=True)
    return made


def test_processes_started_early_wait_and_all_are_reported(campaign: Campaign, capfd) -> None:
    pairs = [("A", ANCHOR), ("B", FIRST[2]), ("A", FIRST[2])]
    models = Models("compile models", pairs, [])
    models.start(campaign)
    chosen = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "ab" / "kernel.best_config"
    chosen.parent.mkdir(parents=True)
    (chosen.parent / "kernel.py").touch()
    chosen.touch()
    models.compile(campaign, 60)
    said = capfd.readouterr().out
    assert said.count("[1024, 2048] 1") == 3
    assert "compiled B hybrid 2 FA [1024, 2048] 1" in said
    assert is_warm("compile models", campaign)
    assert [path.name for path in chosen.parent.iterdir()] == ["kernel.py"]  # measured beside other processes
    models.compile(campaign, 60)  # without an early start
    assert capfd.readouterr().out.count("[1024, 2048] 1") == 3


def test_one_that_fails_is_named_and_the_caches_of_the_others_are_warm(campaign: Campaign) -> None:
    models = Models("compile models", [("broken", ANCHOR), ("A", ANCHOR)], [])
    with pytest.raises(RuntimeError, match="compile-models-broken-compiled: compiled broken"):
        models.compile(campaign, 60)
    assert is_warm("compile models", campaign)


def test_what_is_not_done_in_time_is_left_to_the_next_run(campaign: Campaign) -> None:
    models = Models("compile models", [("A", ANCHOR)], [])
    models.start(campaign)
    with pytest.raises(TimeOver, match="compile-models-a-compiled"):
        models.compile(campaign, 0)
    assert not is_warm("compile models", campaign)


def test_nothing_is_compiled_for_what_is_measured(campaign: Campaign) -> None:
    def timed(done: bool) -> Step:
        return Step("timed", 1, Cost(1, 1, ""), 60, lambda _: done, lambda *_: None)

    assert Models("a", [], [timed(True), timed(True)]).is_done(campaign)
    assert not Models("a", [], [timed(True), timed(False)]).is_done(campaign)


def test_all_that_is_timed_warm_is_compiled_before_in_the_same_variants() -> None:
    for dry in (False, True):
        compiling = {step.name: step.run.__self__ for step in all_steps(dry) if hasattr(step.run, "__self__")}  # type: ignore[attr-defined]
        for name, models in compiling.items():
            assert models.serves
            wanted = {
                (case.model, variant)
                for step in models.serves
                for case in [step.run.args[0]]
                for variant in case.variants
                if variant.mode != "eager"
            }
            assert wanted <= set(models.pairs), name
