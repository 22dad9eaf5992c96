"""Open sizes for a model that collects inputs by `**kwargs`, as those of transformers do.

torch.export counts such an input twice, by itself and as part of the dict that collects it, and then refuses every
`dynamic_shapes` with "Must provide a tree_name when there might be a mismatch". While it runs, the model's `forward`
shows a signature that has a parameter for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from inspect import Parameter
from typing import Any

from torch import nn

from jetvit.passes.frontends.calling import signature_of


def with_named_keywords(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> Any:
    """Return `dynamic_shapes` with an entry for each collected keyword, and let the model's `forward` show them.

    Called within `unchanged`, which takes that back. A model that collects none of these keywords, and
    `dynamic_shapes` of None, are left as they are.
    """
    signature = signature_of(model)
    if dynamic_shapes is None or signature is None:
        return dynamic_shapes
    bound = signature.bind(*args, **kwargs).arguments
    collector = next((each.name for each in signature.parameters.values() if each.kind is Parameter.VAR_KEYWORD), "")
    collected = bound.get(collector, {})
    if not collected:
        return dynamic_shapes
    shapes = dict(dynamic_shapes if isinstance(dynamic_shapes, Mapping) else zip(bound, dynamic_shapes, strict=False))
    shapes |= dict(shapes.pop(collector, None) or dict.fromkeys(collected))
    own = [each for each in signature.parameters.values() if each.name != collector]
    named = [Parameter(name, Parameter.KEYWORD_ONLY) for name in collected]
    forward = model.forward

    @wraps(forward)
    def shown(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    shown.__signature__ = signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    model.__dict__["forward"] = shown
    return shapes
