"""Processes: one is all there is, two share what they know."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from jetvit.search.data.processes import Launched, Processes, processes_here

SHARES = """
import json, torch
from jetvit.search.data.processes import processes_here
here = processes_here()
ours = [torch.tensor([1.0, 2.0]) * (1 + here.index), torch.tensor([[here.index]], dtype=torch.float64)]
kept = ours[0]
here.average(iter(ours))
assert kept is ours[0]
here.average([])
rows = here.gather([("row", here.index)] * (1 + here.index))
print(json.dumps([here.index, here.count, here.first, [each.tolist() for each in ours], rows, str(ours[1].dtype)]))
"""


def test_one_process():
    here = Processes()
    value = torch.tensor([1.0])
    here.average([value])
    assert (here.index, here.count, here.first, value.tolist()) == (0, 1, True, [1.0])
    assert here.gather((1, 2)) == [1, 2]


def test_a_launcher_is_known_by_what_it_sets(monkeypatch: pytest.MonkeyPatch):
    for size in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        assert not isinstance(processes_here(), Launched)


def test_two_processes():
    pytest.importorskip("accelerate")
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [*launch, sys.executable, "-c", SHARES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    found = sorted(json.loads(line) for line in printed.replace("][", "]\n[").splitlines() if line.startswith("["))
    rows = [["row", 0], ["row", 1], ["row", 1]]
    assert found == [[n, 2, n == 0, [[1.5, 3.0], [[0.5]]], rows, "torch.float64"] for n in (0, 1)]
