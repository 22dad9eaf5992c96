"""Define the variants of a model that are timed end to end, and make each ready to be timed.

`eager flash` is the paper's setting. `compiled …` is the original model in Inductor, as it is the baseline that counts.
`hybrid n FA` is what jetvit makes of it with n blocks of full attention left, in Inductor too; `… plain` is the same
graph with plain PyTorch in place of every operator of ours, as the paper ran it. All that is compiled, but `compiled
module`, goes the same road: torch.export, then torch.compile of the graph.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

import jetvit
from benchmarks.end_to_end.models import Shape, mixed_plan
from benchmarks.end_to_end.plain import in_plain_pytorch
from jetvit.cost_model.measuring.rounds import Sampler, sampler
from jetvit.kernels.cuda_graph import captured
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.differences import tensors

Call = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    full: how many blocks of a hybrid keep full attention, None for the original model. plain: without our kernels.
    mode: "eager", or of Inductor: "default", "max-autotune". backend: of SDPA, None leaves it to torch. exported: false
    where torch.compile gets the module itself.
    """

    name: str
    full: int | None = None
    plain: bool = False
    mode: str = "default"
    backend: SDPBackend | None = None
    exported: bool = True


ANCHOR = Variant("compiled")
# The most telling first. The anchor precedes all, for they are timed in turns with it.
FIRST = (
    ANCHOR,
    Variant("eager flash", mode="eager", backend=SDPBackend.FLASH_ATTENTION, exported=False),
    Variant("hybrid 2 FA", full=2),
)
NEXT = (
    Variant("hybrid 2 FA plain", full=2, plain=True),
    Variant("hybrid 0 FA", full=0),
    Variant("hybrid 1 FA", full=1),
    Variant("compiled flash", backend=SDPBackend.FLASH_ATTENTION),
)
TUNED = (
    Variant("max-autotune", mode="max-autotune"),
    Variant("hybrid 2 FA max-autotune", full=2, mode="max-autotune"),
)
# The cuDNN variants come last: torch prefers cuDNN on Hopper by itself, and they repeat the plain ones there.
MORE = (
    Variant("compiled cudnn", backend=SDPBackend.CUDNN_ATTENTION),
    Variant("max-autotune cudnn", mode="max-autotune", backend=SDPBackend.CUDNN_ATTENTION),
    Variant("compiled efficient", backend=SDPBackend.EFFICIENT_ATTENTION),
    Variant("hybrid 0 FA plain", full=0, plain=True),
    Variant("hybrid 1 FA plain", full=1, plain=True),
    Variant("compiled module", exported=False),
)
VARIANTS = {variant.name: variant for variant in (*FIRST, *NEXT, *TUNED, *MORE)}


class Subject:
    """A model and its images, exported once, with the last hybrid that was made of it."""

    def __init__(self, model: nn.Module, images: Tensor, shape: Shape, window: int):
        self.model, self.images, self._shape, self._window = model, images, shape, window
        self._program: ExportedProgram | None = None
        self._hybrid: tuple[int, ExportedProgram] | None = None
        self._expected: dict[int | None, list[Tensor]] = {}

    @property
    def program(self) -> ExportedProgram:
        """Return the original model."""
        if self._program is None:
            self._program = export_model(self.model, (self.images,))
        return self._program

    def hybrid(self, full: int) -> ExportedProgram:
        """Return the rewritten model with so many blocks of full attention."""
        if self._hybrid is None or self._hybrid[0] != full:
            self._hybrid = None  # weights of its own, which are not to stay beside those of the next
            sites = jetvit.find_attention(self.program)
            assert len(sites) == self._shape.depth
            plan = mixed_plan(sites, self._shape.full_blocks(full), self._window)
            self._hybrid = full, jetvit.optimize(self.program, plan=plan)
        return self._hybrid[1]

    def expected(self, full: int | None) -> list[Tensor]:
        """Return the output of the original model, or of a hybrid in plain PyTorch, in eager mode."""
        if full not in self._expected:
            module = self.model if full is None else in_plain_pytorch(self.hybrid(full))
            with torch.inference_mode():
                self._expected[full] = tensors(module(self.images))
        return self._expected[full]


def prepare(variant: Variant, subject: Subject) -> tuple[nn.Module, Call]:
    """Return the module that holds a variant's weights, and the call to be timed; its first call compiles."""
    images = subject.images
    if not variant.exported:
        module = subject.model
    elif variant.full is None:
        module = subject.program.module()
    elif variant.plain:
        module = in_plain_pytorch(subject.hybrid(variant.full))
    else:
        module = subject.hybrid(variant.full).module()
    fast: Callable[..., object] = module
    if variant.mode != "eager":
        # Every graph module has code of its own, so that no variant finds in Dynamo's cache what another compiled.
        # CUDA graphs are captured by whoever times: those of Inductor copy the images and end with `_dynamo.reset()`.
        # A CPU only tries the programs, and has no need of generated code, which takes long.
        cuda = images.device.type == "cuda"
        mode = "max-autotune-no-cudagraphs" if cuda and variant.mode == "max-autotune" else None
        fast = torch.compile(module, dynamic=False, backend="inductor" if cuda else "aot_eager", mode=mode)

    def call() -> object:
        pinned = nullcontext() if variant.backend is None else sdpa_kernel(variant.backend)
        with torch.inference_mode(), pinned:
            return fast(images)

    return module, call


@dataclass(frozen=True)
class Compiled:
    """A variant that was called once.

    expected: what the call should return, None where there was no memory for it. compile_s: seconds of the first call,
    with the caches on disk as they were, None in eager mode. graph_cache: "hit" if Inductor found all of the compiled
    graph on disk, "miss" if it compiled some of it, "" without Inductor. Only the seconds of a miss are a compile time.
    """

    module: nn.Module
    call: Call
    expected: list[Tensor] | None
    compile_s: float | None
    graph_cache: str


def compiled(variant: Variant, subject: Subject) -> Compiled:
    """Prepare a variant and call it once. Raises whatever it raises."""
    try:
        # Before anything is compiled: the first eager attention on a Hopper GPU changes which backend torch prefers.
        expected = subject.expected(variant.full)
    except torch.OutOfMemoryError:
        expected = None
    module, call = prepare(variant, subject)
    counted, began = Counter(counters["inductor"]), time.perf_counter()
    # The key of this cache leaves out the backend of SDPA: a variant would get what another was compiled to.
    with torch._functorch.config.patch(enable_autograd_cache=False):
        call()
    if subject.images.is_cuda:
        torch.cuda.synchronize(subject.images.device)
    seconds = time.perf_counter() - began if variant.mode != "eager" else None
    return Compiled(module, call, expected, seconds, _graph_cache(Counter(counters["inductor"]) - counted))


def _graph_cache(counted: Mapping[str, int]) -> str:
    """Tell from what Inductor has counted whether it found a graph on disk."""
    if counted["fxgraph_cache_miss"] or counted["fxgraph_cache_bypass"]:
        return "miss"
    return "hit" if counted["fxgraph_cache_hit"] else ""


@dataclass(frozen=True)
class Ready:
    """A variant that was compiled, warmed up and compared.

    sampler: takes a sample. timing: "graph" for the replay of a CUDA graph, "events" for plain calls on a GPU, "clock"
    on a CPU. compile_s, graph_cache: see `Compiled`. peak_memory_gb: its weights and the most that a call holds
    besides, None on a CPU. difference: see `difference`, None where there was no memory for the comparison.
    """

    sampler: Sampler
    timing: str
    compile_s: float | None
    peak_memory_gb: float | None
    difference: float | None
    graph_cache: str = ""


def make_ready(variant: Variant, subject: Subject) -> Ready:
    """Prepare a variant, run it, and compare what it returns. Raises whatever it raises."""
    device = subject.images.device
    cuda = device.type == "cuda"
    made = compiled(variant, subject)
    peak = _peak_memory_gb(made.module, made.call, device) if cuda else None
    timed, timing = made.call, "events" if cuda else "clock"
    if cuda and variant.mode != "eager":
        try:
            timed, timing = captured(made.call), "graph"
        except RuntimeError as error:
            print(f"  {variant.name} is not captured, timed call by call: {str(error)[:200]}", flush=True)
    found = None if made.expected is None else difference(timed(), made.expected)
    return Ready(sampler(timed, device, warm_up=2), timing, made.compile_s, peak, found, made.graph_cache)


def release(device: torch.device) -> None:
    """Free the memory of dead objects."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _peak_memory_gb(module: nn.Module, call: Call, device: torch.device) -> float:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    storages = [each.untyped_storage() for each in (*module.parameters(), *module.buffers())]
    weights = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return (torch.cuda.max_memory_allocated(device) - before + sum(weights.values())) / 1e9


def difference(found: object, expected: list[Tensor]) -> float:
    """Return the largest ‖found − expected‖ / ‖expected‖ of the tensors of an output."""
    pairs = zip(tensors(found), expected, strict=True)
    return max(float((ours.float() - theirs.float()).norm() / theirs.float().norm()) for ours, theirs in pairs)
