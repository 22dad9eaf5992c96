"""Model libraries are imported once, before the first capture; nothing here trains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.patterns.roads import no_fast_path


@pytest.fixture(scope="session", autouse=True)
def _quick(frozen_imports: None) -> None:
    """Captures are several times slower while the garbage collector walks what libraries import."""


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad(), no_fast_path():
        yield
