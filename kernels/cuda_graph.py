"""A call as a CUDA graph, whose replay does not wait for the host."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a CUDA graph of a call, on the current device.

    The call has run before: a kernel that is compiled or tuned during the capture would spoil it. The replay returns
    what the call returned when it was captured, tensors that each replay writes anew.

    Raises RuntimeError (torch.OutOfMemoryError, too: a graph keeps memory of its own) where none can be made.
    """
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(2):
            call()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()  # a kernel that is unloaded during the capture would spoil it, too
    try:
        with torch.inference_mode(), torch.cuda.graph(graph):
            out = call()
    finally:
        if enabled:
            gc.enable()
        torch.cuda.set_stream(before)  # a capture that fails leaves its own behind

    def replay(_keep: object = call) -> object:  # what a graph reads must live as long as the graph
        graph.replay()
        return out

    return replay
