"""Open sizes for a model that collects inputs by `**kwargs`, as those of transformers do.

torch.export counts such an input twice, by itself and as part of the dict that collects it, and then refuses every
`dynamic_shapes` with "Must provide a tree_name when there might be a mismatch". While it runs, the model's `forward`
shows a signature that has a parameter for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter
from typing import Any

from torch import nn

from jetvit.passes.frontends.calling import signature_of


@contextmanager
def named_keywords(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> Iterator[Any]:
    """Yield `dynamic_shapes` with an entry for each collected keyword; the model's signature has them meanwhile.

    A model that collects none of these keywords, and `dynamic_shapes` of None, are left as they are.
    """
    signature = signature_of(model)
    if dynamic_shapes is None or signature is None:
        yield dynamic_shapes
        return
    bound = signature.bind(*args, **kwargs).arguments
    collector = next((each.name for each in signature.parameters.values() if each.kind is Parameter.VAR_KEYWORD), "")
    collected = bound.get(collector, {})
    if not collected:
        yield dynamic_shapes
        return
    shapes = dict(dynamic_shapes if isinstance(dynamic_shapes, Mapping) else zip(bound, dynamic_shapes, strict=False))
    shapes |= dict(shapes.pop(collector, None) or dict.fromkeys(collected))
    own = [each for each in signature.parameters.values() if each.name != collector]
    named = [Parameter(name, Parameter.KEYWORD_ONLY) for name in collected]
    forward = model.forward

    @wraps(forward)
    def shown(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    shown.__signature__ = signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    had = model.__dict__.get("forward")
    model.__dict__["forward"] = shown
    try:
        yield shapes
    finally:
        if had is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = had
