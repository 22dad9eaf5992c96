"""The order of axes in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetvit.passes.targets.strides import dense, order_of

IMAGE = torch.arange(2.0 * 3 * 16 * 24).reshape(2, 3, 16, 24)


@pytest.mark.parametrize(
    "tensor",
    [
        IMAGE,
        IMAGE.to(memory_format=torch.channels_last),
        IMAGE[:, :, ::2],
        IMAGE.permute(3, 1, 0, 2),
        IMAGE[:1],
        IMAGE[:1].as_strided((1, 3, 16, 24), (7, 384, 24, 1)),
        torch.zeros(()),
    ],
)
def test_dense_tensors(tensor: Tensor) -> None:
    order = order_of(tensor)
    found = dense(tensor, order)
    assert torch.equal(found, tensor)
    assert order_of(found) == order
    assert found.is_contiguous() == (order is None)
    if order is not None:
        assert found.permute(order).is_contiguous()
    other = dense(tensor.contiguous(), order)
    assert torch.equal(other, tensor)
    assert other.stride() == found.stride()
