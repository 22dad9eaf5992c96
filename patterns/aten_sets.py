"""Sets of ATen operators that patterns and passes treat alike.

A file that accepts more or fewer operators derives its own set from these.
"""

from __future__ import annotations

import operator

import torch

aten = torch.ops.aten

SDPA = aten.scaled_dot_product_attention.default
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
"""Softmax along one axis, their second argument."""
CASTS = frozenset({aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default})
"""Change the dtype and keep the shape."""
COPIES = frozenset({aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default})
"""Keep values, shape and dtype; some allocate new memory."""
PERMUTES = frozenset({aten.transpose.int, aten.permute.default, aten.t.default, aten.mT.default, aten.swapaxes.default})
"""Reorder the axes; `jetvit.patterns.calls.permutation` reads the order."""
RESHAPES = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten._unsafe_view.default),
        *(aten.flatten.using_ints, aten.unflatten.int),
    }
)
"""Regroup the axes; entries keep their row-major order."""
SQUEEZES = frozenset({aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default})
"""Remove or add axes of length 1."""
ROW_MAJOR = RESHAPES | SQUEEZES | {aten.view_as.default, aten.reshape_as.default}
"""Change the shape in any way that keeps the row-major order of the entries."""
VIEWS = RESHAPES | {aten.expand.default}
"""Change the shape, by regrouping axes or by repeating entries."""
SPLITS = frozenset(
    {
        *(aten.chunk.default, aten.split.Tensor, aten.split.default, aten.split.sizes),
        *(aten.split_with_sizes.default, aten.tensor_split.sections),
    }
)
"""Cut an axis, their third argument, into consecutive parts."""
PARTS = SPLITS | {aten.unbind.int}
"""Return several parts of one tensor, each read by a `getitem`."""
LAYOUTS = (
    VIEWS
    | COPIES
    | SQUEEZES
    | PARTS
    | (PERMUTES - {aten.mT.default})  # heads are not split off by a matrix transpose
    | {aten.movedim.int, aten.select.int, aten.slice.Tensor, operator.getitem}
)
"""Rearrange or select entries without changing them."""
SCALINGS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})
"""Multiply or divide out of place."""
SUMS = frozenset({aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor})
"""Add or subtract, out of place or in place."""
MASKED_FILLS = frozenset(
    {aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor}
)
"""Overwrite entries where a mask is True."""
MASKINGS = MASKED_FILLS | {aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther}
"""Replace entries by a condition, as an attention mask does."""
DROPOUTS = frozenset({aten.dropout.default, aten.dropout_.default})
"""Dropout; idle with p = 0 or outside training."""
NORMS = frozenset({aten.layer_norm.default, aten.rms_norm.default})
"""Normalise along the last axes, which their second argument gives."""
