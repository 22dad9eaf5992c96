"""Sets of ATen operators that the patterns treat alike."""

from __future__ import annotations

import torch

aten = torch.ops.aten

SDPA = aten.scaled_dot_product_attention.default
SOFTMAX = (aten.softmax.int, aten._softmax.default)
CASTS = (aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default)
COPIES = (aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default)
TURNS = (aten.transpose.int, aten.permute.default, aten.t.default, aten.mT.default, aten.swapaxes.default)
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default,
         aten.flatten.using_ints, aten.unflatten.int)  # fmt: skip
SCALINGS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor)
MASKINGS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor,
            aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)  # fmt: skip
SPLITS = (
    aten.chunk.default, aten.split.Tensor, aten.split.default, aten.split.sizes, aten.split_with_sizes.default,
    aten.tensor_split.sections,
)  # fmt: skip
"""Operators that cut an axis, their third argument, into consecutive parts."""
