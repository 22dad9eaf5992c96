"""Errors that mean that a disk or a memory is full, as the libraries raise them."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from jetvit.patterns.errors import CaptureError
from jetvit.patterns.resources import disk_full, out_of_memory

HUGE = 2**55


@pytest.mark.parametrize("allocate", [lambda: torch.empty(HUGE), lambda: np.empty(HUGE), lambda: bytearray(HUGE)])
def test_every_allocator_is_understood(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    assert out_of_memory(caught.value)
    assert not disk_full(caught.value)


def test_what_gpus_and_files_in_memory_raise():
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"))
    assert "\n" not in out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"))
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert out_of_memory(MemoryError()) == "memory is used up"


def test_the_cause_counts_behind_another_error():
    error = CaptureError("the model cannot be captured")
    assert out_of_memory(error) == ""
    error.__cause__ = MemoryError("too much")
    assert out_of_memory(error) == "too much"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_device():
    with pytest.raises(OSError, match="No space left") as caught:
        Path("/dev/full").write_text("x")
    assert "No space left on device" in disk_full(caught.value)
    descriptor = os.open("/dev/full", os.O_WRONLY)
    with io.FileIO(descriptor, "w") as stream, pytest.raises(OSError, match="written") as caught:
        np.zeros(10**6).tofile(stream)
    assert disk_full(caught.value)


@pytest.mark.parametrize("error", [ValueError("a full disk"), OSError(errno.EACCES, "Permission denied"), KeyError(1)])
def test_others_are_neither(error: Exception):
    assert disk_full(error) == out_of_memory(error) == ""
