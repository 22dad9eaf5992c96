"""The Triton kernels themselves: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interpreter.device import why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them where no kernel can run."""
    reason = why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.interpreter)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
