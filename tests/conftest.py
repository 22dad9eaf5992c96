"""What every test runs under: one thread, no leftovers of the last compilation, repeatable examples."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# The models are too small to share out, and threads that wait for each other's cores are far slower than one.
torch.set_num_threads(1)
# Captures leave many objects and few cycles: the collector would walk them all at every few thousand new ones.
gc.set_threshold(100_000, 20, 20)
# Compilation writes a structured trace there, which pytest would print with every failure.
logging.getLogger("torch.__trace").propagate = False

# Captures take as long as they take; in CI the examples are the same in every run.
_SLOW_EXAMPLES = [HealthCheck.too_slow, HealthCheck.differing_executors]
settings.register_profile("local", deadline=None, suppress_health_check=_SLOW_EXAMPLES)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


SLOW = Path(__file__).with_name("slow.txt")


@pytest.hookimpl(tryfirst=True)  # before `-m` deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow.txt as slow: those that take seconds, and that a quicker test stands for."""
    slow = {line for line in SLOW.read_text().splitlines() if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real weights and pictures."""
    folder = os.environ.get("JETVIT_DATA")
    if not folder:
        pytest.skip("JETVIT_DATA names no folder of real weights and pictures")
    if not Path(folder).is_dir():
        pytest.skip(f"JETVIT_DATA names {folder}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def frozen_imports() -> None:
    """Imports the model libraries that are there and keeps the garbage collector from walking them at every capture."""
    from tests.zoo import CASES

    for name in ("hf_vit_sdpa", "timm_vit_fused"):
        with contextlib.suppress(pytest.skip.Exception):
            CASES[name].build()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """No test sees what another one compiled."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
