"""The program behind the table of linear designs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ablation import DESIGNS, _latency, linear, main
from benchmarks.whole_plans.plain_vit import PlainViT
from jetvit.passes.frontends.capture import export_model
from jetvit.search.post_training.supernet import Supernet


def test_every_design_has_a_name_of_its_own():
    names = [(design.label, design.inherited) for design in DESIGNS]
    assert len(set(names)) == len(names)
    assert DESIGNS[1].label == "linear relu conv3 static"
    assert DESIGNS[2].label == "linear relu conv3 dynamic"


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: f"{design.label} {design.inherited}")
def test_every_design_is_a_supernet_and_is_timed(design, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.ablation.ROUNDS", 5)
    images = torch.randn(1, 3, 64, 64)
    program = export_model(PlainViT(2, 32, 2).eval(), (images,), {})
    net = Supernet(program, [design.choice], dynamic=design.dynamic, inherit=design.inherited)
    found = _latency(net, design.choice, images)
    assert found["latency_ms"] > 0
    assert found["speedup_low"] <= found["speedup"] <= found["speedup_high"]
    own = {name for site in net.choice_sites.values() for name in site.parameters_of(design.choice)}
    generators = {name.rpartition(".")[2] for name in own if ".linear_attention." in name}
    if not design.choice.conv_size:
        assert not generators
    else:
        assert generators == ({"w1", "b1", "w2", "b2"} if design.dynamic else {"b2"})


def test_weights_that_are_not_inherited_are_drawn():
    program = export_model(PlainViT(2, 32, 2).eval(), (torch.randn(1, 3, 64, 64),), {})
    choice = linear(3)
    inherited, drawn, again = (Supernet(program, [choice], inherit=inherit) for inherit in (True, False, False))
    for name, site in inherited.choice_sites.items():
        for fqn, value in site.parameters_of(choice).items():
            other = drawn.choice_sites[name].parameters_of(choice)[fqn]
            assert torch.equal(other, again.choice_sites[name].parameters_of(choice)[fqn])
            if fqn.endswith(("qkv.weight", "proj.weight")):
                assert not torch.equal(value, other), fqn
                assert torch.equal(value, program.state_dict[fqn])


def test_without_data_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("JETVIT_DATA", raising=False)
    main([])
    assert "not measured: give --data DIR" in capsys.readouterr().out


def test_an_unknown_design_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--data", "x", "--designs", "softmax"])
    assert "no design is called so: linear relu, " in capsys.readouterr().err
