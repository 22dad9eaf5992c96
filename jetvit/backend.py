"""`torch.compile(model, backend="jetvit")`: the passes in front of another backend.

A Dynamo graph is traced to the same ATen dialect that `torch.export` gives, rewritten by the same passes, and handed to
the inner backend. Two instances of a class share one compiled graph, with the parameters as inputs, so nothing that is
computed from a parameter is kept, unless the user freezes the model. A plan's own weights belong to one checkpoint: the
parameters that it was compiled for are checked at every call.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch.fx import GraphModule

from jetvit import kernels, torch_private
from jetvit.api import load_plan
from jetvit.cost_model import Plan
from jetvit.dynamo.handed_on import Results, hand_on, learn
from jetvit.dynamo.parameter_guards import Compiled, for_each_set_of_weights, tie
from jetvit.dynamo.whole_calls import watch
from jetvit.passes.frontends.capture import capture_dynamo
from jetvit.passes.graph.rewritable import DynamoGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite
from jetvit.patterns.errors import CaptureError, InputError
from jetvit.patterns.wording import did_you_mean, operator_name

log = logging.getLogger(__name__)
TENSORRT = ("tensorrt", "torch_tensorrt")


@dataclass(frozen=True)
class BackendOptions:
    """The options of the backend.

    plan: the plan to apply, or its folder; None makes exact rewrites only.
    inner: the backend that compiles the rewritten graph, by name or as a function. "tensorrt" gets a graph without
        jetvit's operators, or, with plugins, with those that can be plugins.
    inner_options: its options (for "inductor": its configuration; for "tensorrt": Torch-TensorRT's settings, and
        "plugins": True).
    freeze: the weights will not change: fold and merge them into the graph, one compilation an instance, or a block
        where a graph break makes blocks share their code.
    partial: what happens where an attention that the plan changes is in a graph and cannot be rewritten there, because
        the token grid is lost for instance: "raise", or "warn" and compute full attention.
    disable: names of passes to leave out, such as ["merge-projections"].
    """

    plan: Any = None
    inner: str | Callable[..., Any] = "inductor"
    inner_options: Mapping[str, Any] = field(default_factory=dict)
    freeze: bool = False
    partial: str = "raise"
    disable: Sequence[str] = ()

    def rewriting(self) -> RewriteOptions:
        """How a graph is rewritten under these options; raises InputError for a pass that there is not."""
        return RewriteOptions(disable=self.disable, partial=True, skip_refused=self.partial == "warn")

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> BackendOptions:
        """Options from the mapping that `torch.compile` hands on.

        Raises:
            InputError: an option is not known, or `partial` is none of its two values.
        """
        known = [each.name for each in fields(cls)]
        for name in options or {}:
            if name not in known:
                raise InputError(
                    f"the jetvit backend has no option {name!r}",
                    do=did_you_mean(str(name), known, f"its options are {', '.join(known)}"),
                )
        parsed = cls(**dict(options or {}))
        if parsed.partial not in ("raise", "warn"):
            raise InputError(f"the option partial is {parsed.partial!r}", do='it is "raise" or "warn"')
        return parsed


def jetvit(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """The backend that Dynamo calls for each graph.

    Args:
        gm: Dynamo's graph.
        example_inputs: its inputs.
        options: see `BackendOptions`.
        mode: a mode of Inductor, such as "max-autotune", where that is the inner backend.
    Raises:
        InputError: an unknown option or inner backend.
        PlanError: the plan does not fit the model.
    """
    parsed = BackendOptions.parse(options)
    plan = _plan(parsed.plan)
    tensorrt = _tensorrt(parsed, mode) if parsed.inner in TENSORRT else None
    try:
        graph = capture_dynamo(gm, example_inputs, parsed.freeze)
    except CaptureError as error:
        if plan is not None or tensorrt is not None:
            raise
        log.warning("a graph is left as it is: %s", error)
        return _compile_inner(gm, example_inputs, parsed, mode)
    results = None
    if plan is not None:
        learn(graph, example_inputs)
        results = Results(graph)
    rewritten = rewrite(graph, plan, parsed.rewriting())
    if tensorrt is not None:
        compiled = tensorrt(graph, example_inputs)
    else:
        compiled = _compile_inner(graph.module if rewritten.changed else gm, example_inputs, parsed, mode)
    if results is not None:
        compiled = hand_on(compiled, graph, results)
    if plan is not None:
        compiled = watch(compiled, plan, rewritten.records, only_warn=parsed.partial == "warn")
    if plan is not None and plan.weights:
        return tie(compiled, graph, "the plan's weights belong")
    if parsed.freeze:
        anew = functools.partial(jetvit, gm, options=options, mode=mode)
        return for_each_set_of_weights(tie(compiled, graph, "the frozen graph belongs"), graph, anew)
    return compiled


def _plan(given: Any) -> Plan | None:
    """The plan of the options; one that is read from a folder is the same object for all graphs of a model."""
    if not isinstance(given, str | os.PathLike):
        return load_plan(given)
    path = Path(given)
    file = path / "plan.json" if path.is_dir() else path
    return _loaded(path, file.stat().st_mtime_ns if file.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _loaded(path: Path, written: int) -> Plan | None:
    return load_plan(path)


def _compile_inner(
    module: GraphModule, example_inputs: Sequence[Any], options: BackendOptions, mode: str | None
) -> Compiled:
    inner, settings = options.inner, dict(options.inner_options)
    if inner == "inductor":
        from jetvit.torch_private import compile_fx, list_mode_options

        settings = {**list_mode_options(mode or "default"), **settings}
        tag = f"{torch.compiler.config.cache_key_tag}jetvit {_kernels_digest()}"
        with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
            return cast(Compiled, compile_fx(module, list(example_inputs), config_patches=settings))
    _refuse_mode(mode, inner)
    if isinstance(inner, str):
        try:
            inner = torch_private.lookup_backend(inner)
        except torch_private.InvalidBackend as error:
            names = torch.compiler.list_backends(exclude_tags=())
            raise InputError(
                f"there is no inner backend {options.inner!r}",
                do=did_you_mean(str(options.inner), names, f"the backends are {', '.join(names)}"),
            ) from error
    return inner(module, list(example_inputs), **({"options": settings} if settings else {}))


@functools.cache
def _kernels_digest() -> str:
    """A digest of the operators' code. torch keeps compiled graphs on disk by the names of the operators in them, and
    would go on with the code of an older jetvit."""
    digest = hashlib.sha256()
    for path in sorted(Path(kernels.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _refuse_mode(mode: str | None, inner: Any) -> None:
    if mode is not None:
        name = repr(inner) if isinstance(inner, str) else operator_name(inner)
        raise InputError(f"mode={mode!r} is for Inductor, and the inner backend is {name}", do="leave mode out")


def _tensorrt(options: BackendOptions, mode: str | None) -> Callable[[DynamoGraph, Sequence[Any]], Compiled]:
    """Return what compiles a rewritten graph with Torch-TensorRT; refuse what can be refused before the capture.

    Raises:
        InputError: Torch-TensorRT is missing, a mode, or a setting that it does not know.
    """
    from jetvit.passes.targets.tensorrt.compiler import check_backend_settings, register, require_tensorrt
    from jetvit.passes.targets.tensorrt.prepare import lower

    _refuse_mode(mode, options.inner)
    library = require_tensorrt()
    settings = dict(options.inner_options)
    plugins = bool(settings.pop("plugins", False))
    check_backend_settings(library, settings)

    def compile_graph(graph: DynamoGraph, example_inputs: Sequence[Any]) -> Compiled:
        lower(graph, plugins)
        if plugins:
            register(library, [node.target for node in graph.module.graph.nodes])
        backend = torch_private.lookup_backend("torch_tensorrt")
        return backend(graph.module, list(example_inputs), **({"options": settings} if settings else {}))

    return compile_graph


__all__ = ["BackendOptions", "Plan", "jetvit"]
