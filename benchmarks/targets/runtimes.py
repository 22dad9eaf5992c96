"""How much faster a rewritten model is in torch.compile, ONNX Runtime and OpenVINO, side by side in one run.

ViT-Tiny (real weights where they are) at 704×960, batch 1, fp32, on one thread. The plan keeps full attention in two of
the twelve blocks; windows of 16×16 and linear attention with a 3×3 convolution take turns in the others. The original
is the model itself in torch.compile, and the file that `jetvit.export` writes without a plan in the others: full
attention everywhere. All six are timed in rounds, in a new order each, and the ratio is taken within a round.
`python -m benchmarks.targets` calls this program.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.cost_model.measuring.rounds import in_rounds, ratio, sampler
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.differences import tensors
from jetvit.patterns.site import AttentionSite

SIZE = (704, 960)
ROUNDS = 15
FULL_BLOCKS = (5, 11)
CHOICES = (Choice("window", window=(16, 16)), Choice("linear", conv_size=3))
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
HIDDEN = 32  # of the generators of the convolutions' kernels
COLUMNS = (
    *("model", "size", "runtime", "version", "full_blocks", "original_ms", "rewritten_ms"),
    *("speedup", "speedup_low", "speedup_high", "rounds", "max_error"),
    *("command", "date", "device", "threads", "torch", "jetvit"),
)


def drawn_plan(sites: Sequence[AttentionSite], choices: Iterable[Choice]) -> Plan:
    """A choice for each site in turn, with random weights for the convolutions."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    chosen = []
    for site, choice in zip(sites, choices, strict=False):
        chosen.append(SitePlan(site.name, choice))
        if not choice.conv_size:
            continue
        channels = site.num_heads * site.head_dim
        taps = channels * choice.conv_size**2
        for part, shape in {"w1": (HIDDEN, channels), "b1": (HIDDEN,), "w2": (taps, HIDDEN), "b2": (taps,)}.items():
            weights[f"{site.name}.linear_attention.{part}"] = 0.05 * torch.randn(shape, generator=generator)
    return Plan(tuple(chosen), Fingerprint.of(sites), weights=weights)


def two_full_blocks(sites: Sequence[AttentionSite]) -> Plan:
    """A plan of windows and linear attention in turn, and of two full blocks."""
    full = Choice("full")
    return drawn_plan(sites, (full if index in FULL_BLOCKS else CHOICES[index % 2] for index in range(len(sites))))


def installed_runtimes() -> Iterator[tuple[str, str]]:
    """The ONNX runtimes that are installed, by their names in `jetvit.load` and in the tables."""
    for runtime, title in RUNTIMES.items():
        if importlib.util.find_spec(runtime) is not None:
            yield runtime, title


def rows(model: nn.Module, folder: Path, size: tuple[int, int] = SIZE, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """One row a runtime that is installed. Torch's threads are set to one."""
    torch.set_num_threads(1)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    program = export_model(model, (images,), {})
    rewritten = jetvit.optimize(program, plan=two_full_blocks(jetvit.find_attention(program)))
    original, fast = folder / "original.onnx", folder / "rewritten.onnx"
    jetvit.export(program, target="onnx", path=original)
    jetvit.export(rewritten, target="onnx", path=fast)
    runs: dict[tuple[str, bool], Callable[[Tensor], Any]] = {
        ("torch.compile", False): torch.compile(model),
        ("torch.compile", True): torch.compile(rewritten.module()),
    }
    versions = {"torch.compile": torch.__version__}
    for runtime, title in installed_runtimes():
        versions[title] = version(runtime)
        for is_fast, path in enumerate((original, fast)):
            runs[title, bool(is_fast)] = jetvit.load(path, runtime=runtime, threads=1)
    for title in RUNTIMES.values():
        if title not in versions:
            print(f"{title} is not installed: no row of it")
    with torch.inference_mode():
        expected = {False: tensors(model(images))[0], True: tensors(rewritten.module()(images))[0]}
        errors = {}
        samplers = []
        for (title, is_fast), run in runs.items():
            found = tensors(run(images))[0]
            errors[title, is_fast] = float((found - expected[is_fast]).abs().max() / expected[is_fast].abs().max())
            samplers.append(sampler(lambda run=run: run(images), torch.device("cpu")))
            print(f"{title}, {'rewritten' if is_fast else 'original'}: error {errors[title, is_fast]:.1e}", flush=True)
        samples = dict(zip(runs, in_rounds(samplers, rounds), strict=True))
    result = []
    for title, release in versions.items():
        full, ours = samples[title, False], samples[title, True]
        middle, low, high = ratio(full, ours)
        result.append(
            {
                "size": "×".join(map(str, size)),
                "runtime": title,
                "version": release,
                "full_blocks": len(FULL_BLOCKS),
                "original_ms": round(float(torch.tensor(full).median()), 1),
                "rewritten_ms": round(float(torch.tensor(ours).median()), 1),
                "speedup": round(middle, 3),
                "speedup_low": round(low, 3),
                "speedup_high": round(high, 3),
                "rounds": len(full),
                "max_error": f"{max(errors[title, False], errors[title, True]):.1e}",
            }
        )
    return result
