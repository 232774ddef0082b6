"""A search inside a program of the user's leaves its process as it was; what Ray leaves, tests/search/tune checks."""

from pathlib import Path

import pytest
import sklearn  # noqa: F401  # packages set variables and filters when they are imported
import torch._dynamo  # noqa: F401  # as optimizers import it

from haq.errors import HaqError
from haq.search import pick, resume, run

from ..process_state import changed, process_state
from .conftest import config_for

LOSING = '''
import torch
from tiny import *

torch.manual_seed(3)


class Failing(Tiny):
    """Fails when it is quantized."""

    def forward(self, x):
        if any("Quant" in type(module).__name__ for module in self.modules()):
            raise RuntimeError("out of order")
        return super().forward(x)


def failing():
    return Failing()
'''


@pytest.mark.usefixtures("in_turn")
def test_a_search_changes_nothing_of_its_process(tiny: Path, tmp_path: Path) -> None:
    run(**config_for(tiny, trials=1, agent="uniform", qat_steps=0, finetune_steps=0).options(), out=tmp_path / "a")
    before = process_state()
    run(**config_for(tiny, trials=6, agent="ddpg").options(), out=tmp_path / "run")
    assert not changed(before, process_state())
    resume(tmp_path / "run")
    pick(tmp_path / "run", "latency=60%", tmp_path / "picked")
    assert not changed(before, process_state())


@pytest.mark.usefixtures("in_turn")
def test_a_search_that_fails_changes_nothing_either(tiny: Path, tmp_path: Path) -> None:
    (tiny.parent / "losing.py").write_text(LOSING)
    before = process_state()
    losing = config_for(tiny, model=f"{tiny.parent}/losing.py:failing", trials=3, agent="haq")
    with pytest.raises(HaqError, match="out of order"):
        run(**losing.options(), out=tmp_path / "run")
    with pytest.raises(HaqError, match="no function"):
        run(**config_for(tiny, model=f"{tiny}:none").options(), out=tmp_path / "none")
    assert not changed(before, process_state())
