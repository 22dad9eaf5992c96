"""The zoo itself: what its models promise to the tests that use them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jetvit.passes.frontends.differences import tensors
from tests.zoo import CASES, Case, found, refused
from tests.zoo.quick import sweep

ALL = [pytest.param(case, id=case.name) for case in CASES.values()]
# Cases that differ only in the attention open up alike: one of each model is enough in a quick run.
QUICK = re.compile(r"hf_depth_anything_sdpa|timm_(vit|eva02)_fused|sdpa|unfold_patches")
# `tests/patterns/test_find.py` captures every case and holds the captured graph against the model.
EXPORTED = (
    "hf_vit_sdpa", "hf_dinov3_eager", "timm_vit_fused", "timm_swin", "sdpa", "separate_unfused", "shared_block",
    "autocast_model", "dropout_in_training", "inplace_mask",
)  # fmt: skip
OPEN = [
    pytest.param(case, id=case.name, marks=() if QUICK.fullmatch(case.name) else pytest.mark.slow) for case in found()
]


def run(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> list[torch.Tensor]:
    args, kwargs = inputs
    torch.manual_seed(0)  # some models have active dropout
    return tensors(model(*args, **kwargs))


class AttentionRecorder(TorchDispatchMode):
    """Notes the innermost module at every attention product that runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names: list[str] = []
        self.stack: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
            module.register_forward_hook(lambda *_: self.stack.pop() and None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "softmax" in func.name() or "scaled_dot_product" in func.name():
            self.names.append(self.stack[-1])
        return func(*args, **(kwargs or {}))

    def numbered(self) -> list[str]:
        seen: Counter[str] = Counter()
        numbered = []
        for name in self.names:
            numbered.append(f"{name}#{seen[name]}" if seen[name] else name)
            seen[name] += 1
        return numbered


@pytest.mark.parametrize("case", ALL)
def test_runs_and_repeats(case: Case) -> None:
    first, second = case.build(), case.build()
    assert all(p.numel() == 1 or p.unique().numel() > 1 for p in first.parameters())
    for size in filter(None, (case.size, case.oblong)):
        for batch in (1, 2):
            inputs = case.inputs(batch=batch, size=size)
            outputs = run(first, inputs)
            assert all(o.shape[0] == batch and o.isfinite().all() and o.float().std() > 0.01 for o in outputs)
            torch.testing.assert_close(outputs, run(second, inputs), rtol=0, atol=0)


@pytest.mark.parametrize("case", sweep(CASES.values(), quick=EXPORTED))
def test_exports(case: Case) -> None:
    model, inputs = case.build(), case.inputs()
    program = torch.export.export(model, *inputs, strict=False)
    torch.testing.assert_close(run(program.module(), inputs), run(model, inputs))


@pytest.mark.parametrize("case", OPEN)
def test_exports_with_open_shapes(case: Case) -> None:
    model, (args, kwargs) = case.build(), case.inputs()
    shapes = case.dynamic_shapes(args, kwargs)
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    other = case.inputs(batch=3, size=case.oblong if case.dynamic == "image" and case.oblong else case.size)
    torch.testing.assert_close(run(program.module(), other), run(model, other))


@pytest.mark.parametrize("case", ALL)
def test_names_are_where_attention_runs(case: Case) -> None:
    model = case.build()
    assert len(case.names) == case.sites
    assert {name.partition("#")[0] for name in case.names} <= dict(model.named_modules()).keys()
    recorder = AttentionRecorder(model)
    with recorder:
        run(model, case.inputs())
    names = recorder.numbered()
    if case.rejections:
        assert len(names) > case.sites
        assert set(case.names) <= set(names)
    else:
        assert tuple(names) == case.names


def test_every_case_asks_for_something() -> None:
    assert {case.name for case in (*found(), *refused())} == CASES.keys()
    assert all(case.name == name for name, case in CASES.items())
