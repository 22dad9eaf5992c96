"""A graph is run only as far as it has to be, and the values are those of a whole run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Interpreter

from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.search.calibration.execution import Execution
from jetvit.search.calibration.runner import Runner
from jetvit.search.calibration.walk import Walk
from tests.zoo import CASES


class Counted:
    """Counts the nodes that interpreters run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, run_node = 0, Interpreter.run_node

        def counted(interpreter: Interpreter, node: Any) -> Any:
            self.count += 1
            return run_node(interpreter, node)

        monkeypatch.setattr(Interpreter, "run_node", counted)

    def take(self) -> int:
        count, self.count = self.count, 0
        return count


def test_nothing_before_a_cut_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["hf_dinov3_sdpa"]
    args, kwargs = case.inputs()
    program = export_model(case.build(), args, kwargs)
    runner, sites = Runner(program), ExportedGraph(program).sites()
    counted = Counted(monkeypatch)
    expected = runner.run((args, kwargs))
    whole = counted.take()
    position = Execution(program).position
    for place, alive in runner.cuts((args, kwargs), [site.out.node.name for site in sites]):
        counted.take()
        torch.testing.assert_close(runner.run((args, kwargs), alive), expected)
        assert counted.take() <= len(position) - position[place] < whole


class WritesInPlace(nn.Module):
    """Writes into a tensor that is read later, by a node whose own value nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.add_(1.0)
        y = self.second(hidden)
        hidden.mul_(2.0)
        return y + hidden


def test_a_graph_that_writes_into_tensors() -> None:
    model, x = WritesInPlace().eval(), torch.randn(3, 4)
    program = export_model(model, (x,))
    execution = Execution(program)
    assert execution.order_matters
    runner, names = Runner(program), [n.name for n in execution.nodes if n.op == "call_function"]
    expected = model(x)
    for _, alive in runner.cuts(((x,), {}), names):
        torch.testing.assert_close(runner.run(((x,), {}), alive), expected)
    with torch.inference_mode():
        values = execution.start(((x,), {}))
        position = execution.advance(values, 0, names[2])
        for _ in range(2):  # the values stay as they are
            torch.testing.assert_close(execution.evaluate("output", values, position)[0], expected)


@pytest.mark.parametrize("limit_bytes", [0, 1 << 30], ids=["in files", "in memory"])
def test_a_walk_has_the_values_of_whole_runs(limit_bytes: int, tmp_path: Any) -> None:
    case = CASES["sdpa"]
    batches = [(case.inputs(batch=1)[0], {}), (tuple(-each for each in case.inputs(batch=1)[0]), {})]
    program = export_model(case.build(), *batches[0])
    execution = Execution(program)
    linears = [n.name for n in execution.nodes if n.target is torch.ops.aten.linear.default]
    with torch.inference_mode():
        walk = Walk(execution, batches, tmp_path, limit_bytes)
        for name in linears:
            for index, batch in enumerate(batches):
                whole = execution.evaluate(name, execution.start(batch))
                torch.testing.assert_close(walk.value(index, name, name), whole)
    assert bool(list(tmp_path.iterdir())) == (limit_bytes == 0)
