"""Small configurations of the models of timm and transformers, through both frontends, against the eager model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.supported_models import unexpected
from tests.zoo.sweep import Entry, complaints, missing, run
from tests.zoo.sweep_oracle import Tokens, difference, window_mask
from tests.zoo.sweep_tables import ENTRIES


@pytest.mark.slow
@pytest.mark.parametrize("entry", [pytest.param(entry, id=name) for name, entry in ENTRIES.items()])
def test_a_model_is_found_and_rewritten_as_expected(entry: Entry) -> None:
    assert not unexpected(entry.fails, complaints(entry, run(entry)))


def test_every_model_is_there_once_and_expects_something() -> None:
    assert len(ENTRIES) >= 120
    assert {entry.library for entry in ENTRIES.values()} == {"timm", "transformers"}


def test_the_mask_joins_tokens_of_a_window_and_extra_tokens() -> None:
    mask = window_mask(Tokens(1, (2, 3), 1), (2, 2))
    # Tokens: extra, then rows 1 2 3 and 4 5 6, then extra. The second window of a row is one column wide.
    together = [{1, 2, 4, 5}, {3, 6}]
    for query in range(8):
        for key in range(8):
            joined = {query, key} & {0, 7} or any({query, key} <= window for window in together)
            assert mask[query, key] == bool(joined)


def test_a_difference_is_relative_to_the_largest_value() -> None:
    assert difference(torch.tensor([10.0, 1.0]), torch.tensor([10.0, 2.0])) == pytest.approx(0.1)
    assert difference(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert difference(torch.tensor(float("nan")), torch.tensor(1.0)) == float("inf")


def test_reasons_are_counted_by_their_parts() -> None:
    assert not missing({"cross": 3}, {"cross attention: 1": 2, "cross attention: 2": 1})
    assert missing({"cross": 1}, {"cross attention": 2}) == ["expected 1 × 'cross', got 2"]
    assert missing({}, {"a bias": 1}) == ["not expected: 1 × 'a bias'"]


def test_a_failure_that_is_gone_is_reported() -> None:
    assert not unexpected({"find": "CaptureError: no"}, {"find": "CaptureError: no graph"})
    assert unexpected({"find": "CaptureError"}, {}) == {"find": "does not fail any more"}
    assert unexpected({}, {"find": "x"}) == {"find": "x"}
