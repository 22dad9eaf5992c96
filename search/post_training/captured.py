"""The model of a search, captured for batches of one size, with the images that show its latency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.passes.frontends.capture import export_model
from jetvit.search.data.splits import Split
from jetvit.search.data.stream import Inputs
from jetvit.search.post_training.request import SearchRequest
from jetvit.search.post_training.train import refuse_half


@dataclass(frozen=True)
class CapturedModel:
    """A model and its program.

    * model: the argument of `search`. program: the graph of a call with `example` [batch, 3, height, width].
    * inputs: from images to the (args, kwargs) of a call, on the model's device and in its dtype.
    * latency_batch: images in the batch whose latency counts.
    """

    model: nn.Module | ExportedProgram
    program: ExportedProgram
    example: Tensor
    inputs: Inputs
    device: torch.device
    latency_batch: int

    @classmethod
    def of(cls, model: nn.Module | ExportedProgram, images: Split, request: SearchRequest, batch: int) -> CapturedModel:
        """Capture a model on the first images of a split.

        Raises:
            InputError: the model's weights are of 16 bits, or the capture fails.
        """
        example = torch.stack([images[number % len(images)].image for number in range(batch)])
        tensor = next((each for each in model.parameters() if each.is_floating_point()), example)
        refuse_half([tensor.dtype])
        device, dtype = tensor.device, tensor.dtype
        call = request.inputs or (lambda images: ((images,), dict(request.kwargs or {})))

        def inputs(images: Tensor) -> tuple[tuple[object, ...], dict[str, object]]:
            return call(images.to(device, dtype))

        program = export_model(model, *inputs(example), None)
        latency_batch = request.latency_batch if isinstance(model, nn.Module) else batch
        return cls(model, program, example, inputs, device, latency_batch)

    @property
    def batch(self) -> int:
        """The number of images in a call."""
        return len(self.example)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the images, in pixels."""
        return int(self.example.shape[-2]), int(self.example.shape[-1])

    def timed_images(self) -> Tensor:
        """Return the batch whose latency counts: [latency_batch, 3, height, width]."""
        return self.example[:1].expand(self.latency_batch, *self.example.shape[1:]).contiguous()

    def timed_program(self) -> ExportedProgram:
        """Capture the model on the batch whose latency counts."""
        return export_model(self.model, *self.inputs(self.timed_images()), None)
