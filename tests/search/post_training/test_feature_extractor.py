"""Features, heads and outputs of a model, as a task reads them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jetvit.patterns.errors import InputError
from jetvit.search.post_training.feature_extractor import FeatureExtractor, relative_error
from jetvit.search.tasks.features import Features
from tests.search.tiny import CONV, SIZE, disturb, extractors

IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_head_gets_maps_of_the_grid_tokens():
    _, extractor, _ = extractors(taps=["blocks.0", "blocks.2"], head=Features().head([32, 32]))
    found = extractor(IMAGES)
    assert [tuple(each.shape) for each in found.tokens] == [(2, 17, 32)] * 2
    assert found.output.shape == (2, 64, 4, 4)
    for number, tokens in enumerate(found.tokens):
        own = found.output[:, 32 * number : 32 * (number + 1)].flatten(2).mT
        assert torch.equal(own, tokens[:, 1:])
    assert all(torch.equal(*pair) for pair in zip(extractor.tokens(IMAGES), found.tokens, strict=True))


@torch.no_grad()
def test_without_a_head_the_output_is_the_models():
    net, extractor, teacher = extractors()
    disturb(net)
    assert torch.equal(extractor(IMAGES).output, net(IMAGES))
    with net.path(dict.fromkeys(net.choice_sites, CONV)):
        assert torch.equal(extractor(IMAGES).output, net(IMAGES))
        assert not torch.equal(teacher(IMAGES).output, net(IMAGES))
    assert torch.equal(teacher(IMAGES).output, net(IMAGES))


@torch.no_grad()
def test_a_named_output():
    net, extractor, _ = extractors()

    def model(*args: object) -> dict[str, object]:
        return {"number": torch.ones(1), "tokens": net(*args)}

    named = FeatureExtractor(model, extractor.taps, None, extractor.inputs, "tokens")
    assert torch.equal(named(IMAGES).output, net(IMAGES))
    wrong = FeatureExtractor(model, extractor.taps, None, extractor.inputs, "logits")
    with pytest.raises(InputError, match="there is no output 'logits'"):
        wrong(IMAGES)


def test_gradients_pass_the_taps_and_maps_are_float():
    class Double(nn.Module):
        def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
            assert all(each.dtype == torch.float32 for each in maps)
            return maps[0] * 2

    net, extractor, _ = extractors(taps=["blocks.0"], head=Double())
    with net.path({"blocks.0.attn": CONV}), torch.autocast("cpu", torch.bfloat16):
        extractor(IMAGES).output.sum().backward()
    weights = net.choice_sites["blocks.0.attn"].parameters_of(CONV)
    assert any(value.grad is not None and value.grad.abs().max() > 0 for value in weights.values())


def drift(ours: Tensor, reference: Tensor) -> float:
    """By the definition, for the tokens [token, channel] of one image."""
    ours, reference = (
        torch.stack([(token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt() for token in each.double()])
        for each in (ours, reference)
    )
    return float((ours - reference).square().sum() / (reference - reference.mean(0)).square().sum())


@given(st.integers(1, 3), st.integers(2, 5), st.floats(0.5, 10), st.floats(-3, 3), st.integers(0, 2**16))
@settings(max_examples=40)
def test_the_error_is_a_share_of_the_variation(taps: int, tokens: int, scale: float, shift: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    reference = [torch.randn(2, tokens, 8, generator=generator) for _ in range(taps)]
    ours = [each + 0.5 * torch.randn(each.shape, generator=generator) for each in reference]
    assert relative_error(reference, reference).tolist() == [0, 0]
    error = relative_error(ours, reference)
    for image in (0, 1):
        expected = [drift(one[image], other[image]) for one, other in zip(ours, reference, strict=True)]
        assert float(error[image]) == pytest.approx(sum(expected) / taps, rel=1e-3)
    # A head that normalises its tokens sees neither their scale nor what is added to all channels of one.
    moved = [scale * each + shift for each in ours]
    torch.testing.assert_close(relative_error(moved, reference), error, rtol=1e-2, atol=1e-4)
    assert (relative_error([-each for each in ours], reference) > error).all()


def test_a_reference_that_does_not_vary_divides_nothing_by_zero():
    flat = [torch.ones(1, 4, 2)]
    assert relative_error(flat, flat).tolist() == [0]
    assert math.isfinite(float(relative_error([torch.zeros(1, 4, 2)], flat)))
