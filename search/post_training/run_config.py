"""The configuration that identifies a search: a folder resumes only with the same one."""

from __future__ import annotations

import hashlib
from typing import Any

from jetvit.search.calibration.run_folder import weights_digest
from jetvit.search.data.splits import Split, Splits, evenly_spaced
from jetvit.search.post_training.captured import CapturedModel
from jetvit.search.post_training.latencies import timed_device
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.request import SearchRequest
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.tasks.task import Task

# Images of each split that are read for the digest.
_DIGESTED = 8


def run_config(
    captured: CapturedModel, net: Supernet, data: Splits, task: Task, request: SearchRequest, recipe: Recipe
) -> dict[str, Any]:
    """Return the content of run.json."""
    output = request.output
    return {
        "sites": [site.to_json() for site in net.fingerprint.sites],
        "weights": weights_digest(captured.program.state_dict),
        "size": list(captured.size),
        "splits": data.record(),
        "samples": [_digest_of_samples(each) for each in (data.train, data.select, data.test)],
        "output": output if isinstance(output, int | str) else type(output).__name__,
        "task": repr(task),
        "budget": str(request.budget),
        "max_full": request.max_full,
        "choices": [choice.label for choice in request.choices],
        "recipe": recipe.to_json(),
        "taps": list(request.taps) if request.taps is not None else None,
        "head": weights_digest(request.head.state_dict()) if request.head is not None else None,
        "latencies_of": timed_device(captured, request),
        "dtype": request.dtype,
        "latency_batch": request.latency_batch,
        "precision": request.precision,
        "seed": request.seed,
    }


def _digest_of_samples(split: Split) -> str:
    """Return the sha256 of a few samples as they are read: other labels or another normalisation change it."""
    digest = hashlib.sha256()
    for place in evenly_spaced(len(split), _DIGESTED):
        for tensor in split[place]:
            if tensor is not None:
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
