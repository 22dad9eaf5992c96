"""A grid that is not known is refused by the name of its site."""

from __future__ import annotations

import pytest
import torch

from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import InputError
from jetvit.patterns.find import find_sites
from jetvit.search.calibration.fixed_grids import refuse_open_grids
from tests.search.tiny import small

IMAGE = torch.zeros(2, 3, 64, 64)


def test_an_open_grid_is_refused():
    size = {2: 16 * torch.export.Dim("h", max=8), 3: 16 * torch.export.Dim("w", max=8)}
    open_ = export_model(small(), (IMAGE,), {}, {"image": size})
    with pytest.raises(InputError, match="a test needs a fixed image size") as error:
        refuse_open_grids(find_sites(ExportedGraph(open_)), "a test")
    assert str(error.value.why).startswith("the token grid of blocks.0.attn is ")


def test_a_fixed_grid_passes():
    refuse_open_grids(find_sites(ExportedGraph(export_model(small(), (IMAGE,), {}))), "a test")
