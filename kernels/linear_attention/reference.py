"""Linear attention in ATen: the meaning of the operator, and the CPU's own implementation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jetvit.kernels.autocast import without_autocast
from jetvit.kernels.checks import is_absent
from jetvit.kernels.rope import rotate


def _relu(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(q), torch.relu(k)


def _relu_centred(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(q), torch.relu(k - k.mean(dim=1, keepdim=True))


def _hedgehog(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    q, k = (torch.cat([x.softmax(dim=-1), (-x).softmax(dim=-1)], dim=-1) for x in (q, k))
    return q, k


# From q and k [batch, token, head, dim], all tokens of the images, to their features [batch, token, head, feature].
FEATURE_MAPS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "relu": _relu,
    "relu_centred": _relu_centred,
    "hedgehog": _hedgehog,
}


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    conv_size: int,
    eps: float,
    feature_map: str,
) -> Tensor:
    """Compute `jetvit::linear_attention`; the operator's own docstring has the contract."""
    with without_autocast(q.device):
        dtype = q.dtype
        # fp32 holds the sums over any number of fp16 tokens. A kernel that keeps them in 16 bits scales them by 1/N.
        q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
        if not is_absent(rope_y):
            q, k = (x.to(v.dtype) for x in rotate(q, k, rope_y, rope_x, extra_before))
        out = _attend(*FEATURE_MAPS[feature_map](q, k), v, eps)
        if conv_size > 0:
            sizes = [extra_before, grid_h * grid_w, q.shape[1] - extra_before - grid_h * grid_w]
            v_grid = v.split(sizes, dim=1)[1].flatten(2)
            w1, b1, w2, b2 = (x.to(v.dtype) for x in (w1, b1, w2, b2))
            kernel = _depthwise_kernel(v_grid.mean(dim=1), w1, b1, w2, b2, conv_size)
            convolved = convolve(v_grid.unflatten(1, (grid_h, grid_w)), kernel).reshape(v_grid.shape)
            before, grid, after = out.split(sizes, dim=1)
            out = torch.cat([before, grid + convolved.unflatten(2, q.shape[2:]), after], dim=1)
        return out.to(dtype).contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """q·(kᵀv) / (q·Σk + eps) for features q, k [batch, token, head, feature] and v [batch, token, head, dim]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # Σk is one more column of kᵀv, so that one product yields numerator and denominator.
    sums = torch.cat([k.mT @ v, k.sum(dim=2).unsqueeze(-1)], dim=-1)
    num, den = (q @ sums).transpose(1, 2).split([v.shape[3], 1], dim=-1)
    return num / (den + eps)


def _depthwise_kernel(mean: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, size: int) -> Tensor:
    """The kernel [batch, channel, size, size] that the MLP makes of the mean v [batch, channel].

    Without an MLP it is b2 for every image: [1, channel, size, size].
    """
    if is_absent(w1):
        flat = b2[None]
    else:
        flat = F.linear(F.silu(F.linear(mean, w1, b1)), w2, b2)
    return flat.unflatten(1, (mean.shape[1], size, size))


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlate x [batch, height, width, channel] with kernel [batch or 1, channel, K, K], zeros around x."""
    images, channels, size, _ = kernel.shape
    groups = images * channels
    if not isinstance(groups, int):
        # Inductor's convolution would specialise on the number of groups, and so on the batch.
        return convolve_by_taps(x, kernel)
    batch, height, width, _ = x.shape
    if images > 1:
        # A kernel an image: the images become channels of one.
        x = x.permute(1, 2, 0, 3).reshape(1, height, width, groups)
    # A strided slice of a packed qkv would take the CPU's convolution several times as long.
    x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    out = F.conv2d(x, kernel.reshape(groups, 1, size, size), padding=size // 2, groups=groups).permute(0, 2, 3, 1)
    return out.reshape(height, width, batch, channels).permute(2, 0, 1, 3) if images > 1 else out


def convolve_by_taps(x: Tensor, kernel: Tensor) -> Tensor:
    """The same convolution as a sum of shifted products, which Inductor fuses and which knows no groups."""
    height, width = x.shape[1:3]
    size = kernel.shape[-1]
    padded = F.pad(x, (0, 0, size // 2, size // 2, size // 2, size // 2))
    taps = [
        padded.narrow(1, dy, height).narrow(2, dx, width) * kernel[:, None, None, :, dy, dx]
        for dy, dx in itertools.product(range(size), repeat=2)
    ]
    return functools.reduce(torch.add, taps)
