"""`Operation`: one operator call of a Vision Transformer, by the sizes that its latency depends on, and its work.

Measurements, predictions and whole-graph estimates speak of operations; a table has a column for each field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from jetvit.kernels import balanced_windows
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS

ATTENTIONS = ("full", "window", "linear")
ROW_WISE = ("layer_norm", "gelu", "add")
OPS = (*ATTENTIONS, "gemm", *ROW_WISE)
# How often the data of an op goes to or from memory; twice where it is not named.
PASSES = {"full": 4, "window": 4, "linear": 5, "add": 3}
# How many features of linear attention a channel of q and k becomes; one where the map is not named.
_FEATURES = {"hedgehog": 2}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Operation:
    """One call, by sizes alone.

    * op: "full", "window" or "linear" attention of q, k, v [batch, tokens, heads, head_dim]; "gemm", x·Wᵀ + b with
      x [batch, tokens, inputs] and W [outputs, inputs]; "layer_norm", "gelu" or "add" on [batch, tokens, inputs].
    * dtype: "float32", "float16" or "bfloat16".
    * batch, grid_h, grid_w, extra: a sequence has grid_h · grid_w grid tokens and `extra` others.
    * heads, head_dim, rope: of an attention; rope is whether it rotates q and k itself.
    * window_h, window_w: the largest window of "window".
    * conv_size, feature_map: of "linear", the side of the convolution, 0 for none, and what makes features of q and k,
      "relu" where it is not given.
    * backend: of "full", the backend of SDPA, or "" for the one that the operator chooses by itself.
    * inputs, outputs: features.

    Fields that an op does not have are 0, False or "". Raises ValueError for one that is missing or not its own.
    """

    op: str
    dtype: str
    batch: int
    grid_h: int
    grid_w: int
    extra: int = 0
    heads: int = 0
    head_dim: int = 0
    rope: bool = False
    window_h: int = 0
    window_w: int = 0
    conv_size: int = 0
    feature_map: str = ""
    backend: str = ""
    inputs: int = 0
    outputs: int = 0

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"op is {self.op!r}, which is none of {', '.join(OPS)}")
        if self.dtype not in ELEMENT_BYTES:
            raise ValueError(f"dtype is {self.dtype!r}, which is none of {', '.join(ELEMENT_BYTES)}")
        if self.op == "linear":
            object.__setattr__(self, "feature_map", self.feature_map or "relu")
            if self.feature_map not in FEATURE_MAPS:
                raise ValueError(f"feature_map is {self.feature_map!r}, which is none of {', '.join(FEATURE_MAPS)}")
        needed = {"batch", "grid_h", "grid_w"}
        allowed = {"op", "dtype", "extra"} | needed
        if self.op in ATTENTIONS:
            needed |= {"heads", "head_dim"} | ({"window_h", "window_w"} if self.op == "window" else set())
            own = {"linear": {"conv_size", "feature_map"}, "full": {"backend"}}.get(self.op, set())
            allowed |= needed | {"rope"} | own
        else:
            needed |= {"inputs"} | ({"outputs"} if self.op == "gemm" else set())
            allowed |= needed
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in needed and not value >= 1:
                raise ValueError(f"{self.op} needs {field.name} of at least 1, got {value!r}")
            if field.name not in allowed and value:
                raise ValueError(f"{self.op} has no {field.name}, got {value!r}")
            if type(value) is int and value < 0:
                raise ValueError(f"{field.name} is negative: {value}")

    @property
    def key(self) -> Self:
        """The operation that stands for all of the same latency: what does not matter to this op is gone.

        Products and row-wise ops see a number of rows, full attention without RoPE a number of tokens.
        """
        if self.op not in ATTENTIONS:
            return replace(self, batch=1, grid_h=1, grid_w=self.rows, extra=0)
        if self.op == "full" and not self.rope:
            return replace(self, grid_h=1, grid_w=self.tokens, extra=0)
        return self

    @property
    def tokens(self) -> int:
        """Tokens of one sequence."""
        return self.grid_h * self.grid_w + self.extra

    @property
    def rows(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.tokens

    @property
    def features(self) -> int:
        """Width of the tokens that come in."""
        return self.heads * self.head_dim if self.op in ATTENTIONS else self.inputs

    @property
    def feature_dim(self) -> int:
        """What the feature map makes of the head_dim channels of q and of k; head_dim where there is no such map."""
        return self.head_dim * _FEATURES.get(self.feature_map, 1)

    @property
    def flops(self) -> int:
        """Floating-point operations, a product and its sum counted as two; of "gelu" and its like, one an element."""
        rows, width, grid = self.rows, self.features, self.batch * self.grid_h * self.grid_w
        if self.op == "full":
            return 4 * rows * self.tokens * width
        if self.op == "window":
            seen = self.extra + self.window_tokens
            return 4 * width * (grid * seen + self.batch * self.extra * self.tokens)
        if self.op == "linear":
            return 4 * rows * self.feature_dim * width + 2 * self.conv_size**2 * grid * width
        if self.op == "gemm":
            return 2 * rows * self.inputs * self.outputs
        return rows * width

    @property
    def window_tokens(self) -> int:
        """Tokens of the largest window."""
        (_, side_h), (_, side_w) = (
            balanced_windows(self.grid_h, self.window_h),
            balanced_windows(self.grid_w, self.window_w),
        )
        return side_h * side_w

    @property
    def bytes(self) -> int:
        """Bytes to and from memory where every input is read once and every output written once.

        Linear attention needs all of k and v before any output, and so reads v twice; "relu_centred" needs the mean of
        k before any feature, and so reads k twice. Features are made on the way and are not in memory. The few tables
        and biases are left out.
        """
        passes = PASSES.get(self.op, 2) + (self.feature_map == "relu_centred")
        elements = passes * self.rows * self.features
        if self.op == "gemm":
            elements = self.rows * (self.inputs + self.outputs) + self.inputs * self.outputs
        return elements * ELEMENT_BYTES[self.dtype]

    @property
    def variant(self) -> str:
        """What tells its kernel from others of its op and dtype: its backend, or its feature map if not "relu"."""
        return self.backend or ("" if self.feature_map == "relu" else self.feature_map)

    @property
    def family(self) -> str:
        """The name of all operations that differ from this one by batch and tokens alone."""
        parts = [self.op, self.dtype]
        if self.op in ATTENTIONS:
            parts += [f"{self.heads}x{self.head_dim}", "rope" if self.rope else ""]
            parts += [f"{self.window_h}x{self.window_w}" if self.op == "window" else ""]
            parts += [f"conv{self.conv_size}" if self.op == "linear" else "", self.variant]
        else:
            parts += [str(self.inputs) + (f"->{self.outputs}" if self.outputs else "")]
        return " ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.family}, batch {self.batch}, {self.grid_h}x{self.grid_w} + {self.extra} tokens"

    def to_row(self) -> dict[str, str]:
        """The fields as text, by name."""
        return {
            field.name: str(int(v) if type(v := getattr(self, field.name)) is bool else v) for field in fields(self)
        }

    @classmethod
    def from_row(cls, row: dict[str, str]) -> Self:
        """The inverse of `to_row`; other columns are passed over. Raises ValueError for what is no such row."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = row.get(field.name)
            if text is None:
                raise ValueError(f"there is no column {field.name}")
            if field.type == "bool":
                if text not in ("0", "1"):
                    raise ValueError(f"{field.name} is {text!r}, neither 0 nor 1")
                values[field.name] = text == "1"
            elif field.type == "int":
                if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
                    raise ValueError(f"{field.name} is {text!r}, which is no whole number")
                values[field.name] = int(text)
            else:
                values[field.name] = text
        return cls(**values)
