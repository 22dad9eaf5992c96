"""A program that computes something else than its model is refused; all others pass, whatever they do at random."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns import CaptureError

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class TakesAnotherWay(nn.Module):
    """As transformers' masks do, it leaves a step out unless it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x + 1 if torch.compiler.is_compiling() else x)


def test_another_way_is_refused_by_the_module_that_it_shows_in() -> None:
    model = TakesAnotherWay().eval()
    with pytest.raises(CaptureError, match=r"(?s)TakesAnotherWay does not compute.*output 0.*where: second \(Linear\)"):
        jetvit.optimize(model, X)
    with pytest.raises(CaptureError, match="does not compute"):
        jetvit.optimize(model, kwargs={"x": X})
    assert not any(module._forward_hooks for module in model.modules())


def test_attention_is_found_in_it_all_the_same() -> None:
    assert jetvit.find_attention(TakesAnotherWay().eval(), X) == []


def test_what_draws_random_numbers_is_not_compared() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_compiling():
                torch.rand(3)  # so that the same seed gives other numbers
            return x + torch.rand_like(x)

    before = torch.get_rng_state()
    jetvit.optimize(Noisy().eval(), X)
    assert torch.equal(torch.get_rng_state(), before)


def test_buffers_and_inputs_are_as_before() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x.add_(self.calls)

    model, x = Writes().eval(), X.clone()
    export_model(model, (x,))
    assert torch.equal(x, X)
    assert model.calls == 0


def test_nan_equals_nan() -> None:
    class Undefined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0 * 0

    export_model(Undefined().eval(), (X,))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4), nn.TransformerEncoderLayer(4, 2, 8, 0.1)])
def test_training_mode_is_told_of_and_not_compared(layer: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    export_model(model.train(), (X,))
    assert "Sequential is in training mode" in caplog.text
    caplog.clear()
    export_model(model.eval(), (X,))
    assert "training mode" not in caplog.text


@pytest.mark.parametrize("layer", [nn.Dropout(0), nn.BatchNorm1d(4, track_running_stats=False)])
def test_what_is_the_same_in_training_is_not_told_of(layer: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    export_model(nn.Sequential(nn.Linear(4, 4), layer).eval(), (X,))
    export_model(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0)).train(), (X,))
    assert "training mode" not in caplog.text


def test_a_model_without_values_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    export_model(TakesAnotherWay().eval().to("meta"), (X.to("meta"),))
    assert not [each for each in caplog.records if each.name.startswith("jetvit")]


def test_a_model_that_does_not_run_here_is_captured_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class OutOfMemory(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                raise torch.OutOfMemoryError("no memory left")
            return x + 1

    with caplog.at_level(logging.WARNING, "jetvit"):
        export_model(OutOfMemory().eval(), (X,))
    assert "not compared with the model" in caplog.text
    assert "no memory left" in caplog.text


def test_a_program_that_does_not_run_is_refused() -> None:
    class RunsInEagerOnly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_compiling():
                torch._assert_async(torch.zeros((), dtype=torch.bool), "it never holds")
            return x + 1

    with pytest.raises(CaptureError, match=r"(?s)does not run, while the model does.*it never holds"):
        export_model(RunsInEagerOnly().eval(), (X,))


def test_complex_outputs_are_compared_in_both_parts() -> None:
    class Spectrum(nn.Module):
        def __init__(self, wrong: complex) -> None:
            super().__init__()
            self.wrong = wrong

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).conj() + (self.wrong if torch.compiler.is_compiling() else 0)

    export_model(Spectrum(0).eval(), (X,))
    with pytest.raises(CaptureError, match="output 0 is off"):
        export_model(Spectrum(1j).eval(), (X,))


def test_fields_that_export_puts_in_another_order_are_compared_by_name() -> None:
    outputs = pytest.importorskip("transformers").modeling_outputs

    class SetsAFieldLater(nn.Module):
        def forward(self, x: Tensor) -> Any:
            output = outputs.BaseModelOutputWithPooling(last_hidden_state=x, hidden_states=(x, x + 1))
            output.pooler_output = x.mean(1)  # before hidden_states in the class
            return output

    model = SetsAFieldLater().eval()
    if "pooler_output" not in model(X):
        pytest.skip("this transformers leaves fields that are set later out of its outputs")
    found = jetvit.optimize(model, X)(X)
    assert torch.equal(found.pooler_output, X.mean(1))


def test_outputs_in_containers_and_inputs_by_name_are_compared() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, list[Tensor]]:
            wrong = 2 if torch.compiler.is_compiling() else 1
            return {"features": [x, x * scale * wrong]}

    with pytest.raises(CaptureError, match="output 1 is off"):
        export_model(Nested().eval(), (X,), {"scale": torch.ones(4)})
