"""The module of the original model that a node of an ONNX graph was made in, and the line of its code.

The exporter of torch.export writes both into the metadata of each node. The TorchScript exporter names nodes after
modules, "/blocks/blocks.0/attn/qkv/MatMul", and writes no more.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from jetvit.patterns.names import clean_name

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
STACK = "pkg.torch.onnx.stack_trace"
KIND = "pkg.torch.export.graph_signature.InputSpec.kind"
SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
SCOPE = "jetvit.scope"
"""The metadata that `mark` leaves, so that it outlives rewriting."""
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_MADE = re.compile(r"(onnx::\w+|val_\d+|_val_\d+|\w*Constant_\d+|_v_\d+|\d+|.*_output_\d+|/.*|.*/.*)(_[a-z]+)?|_.*")
"""Names that an exporter made up for a constant."""
_SCOPED = 24  # steps along the graph on which a neighbour's module may be told


def mark(graph: ir.Graph) -> bool:
    """Write the module of every node into its metadata; False if the file tells of none."""
    scopes = {node: _valid(scope) for node in graph.all_nodes() if (scope := _scope(node)) is not None}
    paths, owners = set(scopes.values()), {name.rpartition(".")[0] for name in graph.initializers}
    for node, scope in scopes.items():
        node.metadata_props[SCOPE] = scope if SCOPES in node.metadata_props else _first_run(scope, paths, owners)
    return any(scopes.values())


def _valid(scope: str) -> str:
    """A path of modules that the tracer takes: no part is empty, and "@", by which it counts calls, is in none."""
    return ".".join(re.sub(r"[^\w-]+", "_", part) for part in scope.split(".") if part)


def _first_run(scope: str, paths: set[str], owners: set[str]) -> str:
    """The module whose second run the TorchScript exporter calls by a number: "attn_1" is "attn", run once more."""
    parts = scope.split(".")
    for index, part in enumerate(parts):
        base = re.sub(r"_\d+$", "", part)
        plain, own = ".".join([*parts[:index], base]), ".".join(parts[: index + 1])
        owns = any(owner == own or owner.startswith(f"{own}.") for owner in owners)
        if base != part and not owns and any(path == plain or path.startswith(f"{plain}.") for path in paths):
            parts[index] = base
    return ".".join(parts)


def scope_of(node: ir.Node) -> str:
    """The FQN of the module that a node was made in; "" for the model itself, or where it is not known."""
    return node.metadata_props.get(SCOPE, "")


def is_made_up(name: str | None) -> bool:
    """True if an exporter made up a constant's name: it is no FQN of the model."""
    return not name or _MADE.fullmatch(name) is not None


def parameters(graph: ir.Graph) -> frozenset[str]:
    """The FQNs of the exported model's parameters and buffers, as far as the file tells them."""
    listed = re.findall(r": (?:PARAMETER|BUFFER) target='([^']+)'", graph.metadata_props.get(SIGNATURE, ""))
    marked = [
        name for name, value in graph.initializers.items() if value.metadata_props.get(KIND) in ("PARAMETER", "BUFFER")
    ]
    return frozenset((*listed, *marked))


def stack_trace(node: ir.Node, file: str, index: int) -> str:
    """The origin of a node, as Python writes it: the model's own code, or the node's place in the file."""
    own = node.metadata_props.get(STACK)
    return own if own else f'File "{file}", line {index}, in {node.op_type}\n    {node.name or ""}'.rstrip()


def _scope(node: ir.Node) -> str | None:
    written = node.metadata_props.get(SCOPES)
    if written is not None:
        try:
            scopes = ast.literal_eval(written)
        except (ValueError, SyntaxError):
            return None
        if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
            return None
        modules = [scope for scope in scopes[:-1] if scope != _NO_MODULE]
        return clean_name(modules[-1]) if modules else ""
    return _from_path(node.name) if node.name and node.name.startswith("/") else None


def _from_path(name: str) -> str:
    """The module in a path such as "/blocks/blocks.0/attn/qkv/MatMul": here "blocks.0.attn.qkv"."""
    scope: list[str] = []
    for part in filter(None, name.strip("/").split("/")[:-1]):  # optimizers leave empty parts
        if scope and part.startswith(scope[-1] + "."):
            scope[-1] = part
        else:
            scope.append(part)
    return ".".join(scope)


def fill(graph: ir.Graph) -> None:
    """Give a module to each attention whose node has none, as in files that an optimizer has written.

    It is the one around the projection that reads the attention's result, where that projection's weights have FQNs;
    else `layers.N.attn`, by position among all attentions of the file. Other nodes stay in the model itself.
    """
    count = 0
    for node in graph:
        if node.op_type not in ("Softmax", "Attention", "MultiHeadAttention"):
            continue
        if not scope_of(node):
            body = _body(node)
            scope = _projection_scope(body[-1]) or f"layers.{count}.attn"
            for each in body:
                each.metadata_props.setdefault(SCOPE, scope)
                each.metadata_props[SCOPE] = each.metadata_props[SCOPE] or scope
        count += 1


def _body(node: ir.Node) -> list[ir.Node]:
    """The nodes from a softmax to the product with v; one node for a whole attention."""
    body = [node]
    while body[-1].op_type not in ("MatMul", "Attention", "MultiHeadAttention", "Einsum", "Gemm"):
        readers = list(body[-1].outputs[0].uses())
        if len(readers) != 1:
            break
        body.append(readers[0].node)
    return body


def _projection_scope(node: ir.Node) -> str:
    """The module around the next product with a weight, by the FQN of that weight or of its bias."""
    for _ in range(_SCOPED):
        readers = list(node.outputs[0].uses())
        if len(readers) != 1:
            return ""
        node = readers[0].node
        names = [value.name for value in node.inputs if value is not None and value.is_initializer()]
        for name in names:
            if not is_made_up(name) and "." in str(name):
                return str(name).rpartition(".")[0].rpartition(".")[0]
        if node.op_type in ("Softmax", "LayerNormalization", "SkipLayerNormalization"):
            return ""
    return ""
