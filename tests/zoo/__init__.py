"""Small models with random weights that the tests of every room share.

`CASES` maps a name to a `Case`: how to build and call a model, and what `find_attention` must say about it. Models of
transformers, timm and torchvision are imported when they are built, and skip the test where the package is missing.
"""

from __future__ import annotations

from tests.zoo.case import Case
from tests.zoo.handwritten import CASES as HANDWRITTEN
from tests.zoo.hf import CASES as HF
from tests.zoo.refused import CASES as REFUSED
from tests.zoo.timm_models import CASES as TIMM

CASES: dict[str, Case] = {case.name: case for case in (*HF, *TIMM, *HANDWRITTEN, *REFUSED)}


def found() -> list[Case]:
    """The cases that have at least one site."""
    return [case for case in CASES.values() if case.sites]


def refused() -> list[Case]:
    """The cases that have at least one attention that must be rejected; some have sites as well."""
    return [case for case in CASES.values() if case.rejections]


__all__ = ["CASES", "Case", "found", "refused"]
