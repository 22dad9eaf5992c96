"""Marks for tests that a defect of a library stops on some releases; each reason names the report of the defect."""

from __future__ import annotations

import pytest

from jetvit.versions import installed, numbers

# Releases are the first without the defect that the suite ran with.
runs_dinov3_without_data = pytest.mark.skipif(
    numbers(installed().get("transformers", "5.17")) < (5, 17),
    reason="DINOv3 does not run on the meta device: pytorch/pytorch#130067, which transformers avoids since "
    "huggingface/transformers#44984",
)

evaluates_bf16 = pytest.mark.skipif(
    numbers(installed().get("onnx", "1.23")) < (1, 23),
    reason="ONNX's evaluator multiplies no matrices in bf16: onnx/onnx#6991",
)
