"""Messages name operators and numbers of things as one would write them; none holds an address."""

from __future__ import annotations

import ast
import itertools
import math
import operator
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted, did_you_mean, operator_name, without_reprs
from tests.patterns.roads import by_dynamo
from tests.test_architecture import in_rooms
from tests.zoo.case import REPRS, images, randomize
from tests.zoo.handwritten import SCALE, Attention, TinyViT

aten = torch.ops.aten


def test_the_nearest_word_is_advised() -> None:
    assert did_you_mean("windwo", ["window", "linear"], "give one") == "did you mean 'window'?"
    assert did_you_mean("xyz", ["window", "linear"], "give one") == "give one"
    assert did_you_mean("xyz", {}) == ""


def test_nouns_are_counted() -> None:
    texts = [counted(1, "site"), counted(0, "site"), counted(2, "axis", "axes"), counted(1, "axis", "axes")]
    assert texts == ["1 site", "0 sites", "2 axes", "1 axis"]


@pytest.mark.parametrize("path", [path for _, path in in_rooms()], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_lengths_are_counted_with_their_nouns(path: Path) -> None:
    """No `f"{len(sites)} sites"`, which is wrong for one."""
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for number, noun in itertools.pairwise(parts):
            if not (isinstance(number, ast.FormattedValue) and isinstance(noun, ast.Constant)):
                continue
            length = re.fullmatch(r"len\(.*\)", ast.unparse(number.value))
            if length and re.match(r" (?!of )(?:\w+ )?[a-z]+(?<!s|u)s\b", str(noun.value)):
                wrong.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert wrong == []


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.add.Tensor, "aten.add.Tensor"),
        (aten.add, "aten.add"),
        (torch.ops.higher_order.cond, "cond"),
        (operator.getitem, "operator.getitem"),
        (math.ceil, "math.ceil"),
        (torch.sym_max, "torch.sym_max"),
        (torch._functorch.predispatch._add_batch_dim, "torch.vmap"),
        (max, "max"),
        (partial(max, 1), "functools.partial"),
        ("p_weight", "p_weight"),
    ],
)
def test_operators_go_by_name(target: Any, name: str) -> None:
    assert operator_name(target) == name


def method_owner() -> Callable[..., Any]:
    return nn.Linear(1, 1).forward


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (aten.add.Tensor, "aten.add.Tensor"),
        (aten.add, "aten.add"),
        (nn.Linear, "torch.nn.modules.linear.Linear"),
        (torch.vmap, "vmap"),
        (math.ceil, "ceil"),
        (torch.relu, "relu"),
        (method_owner(), "Linear.forward"),
        (object(), "object"),
        (lambda: 0, "<lambda>"),
    ],
)
def test_text_of_others_is_without_reprs(found: Any, text: str) -> None:
    assert without_reprs(f"no {found!r} here") == f"no {text} here"


def test_errors_hold_no_address() -> None:
    error = InputError(f"no {object()}", why=f"{torch.vmap}", do=f"call {aten.add.Tensor!r}")
    assert not REPRS.search(str(error))


def over_images(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one image, for each."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1) @ v

    return torch.vmap(attend)(q, k, v)


def over_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.vmap(lambda s: s * SCALE)(q @ k.transpose(-2, -1))
    return scores.softmax(dim=-1) @ v


def over_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) * SCALE).softmax(dim=-1)
    return torch.vmap(torch.matmul)(weights, v)


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.vmap(lambda x: x * 1.5)(q) @ k.transpose(-2, -1) * SCALE).softmax(dim=-1)
    return weights @ v


@pytest.mark.parametrize("product", [over_images, over_scores, over_weights, over_queries])
@pytest.mark.parametrize("frontend", ["export", "dynamo"])
def test_vmap_goes_by_name(product: Callable[..., Tensor], frontend: str) -> None:
    model, x = randomize(TinyViT(partial(Attention, product))), images(2, 3, 32, 48)
    sites = jetvit.find_attention(model, x) if frontend == "export" else by_dynamo(model, (x,), {}).sites
    assert not sites
    for rejection in sites.rejected:
        assert "torch.vmap" in rejection.reason
        assert not REPRS.search(str(rejection))
