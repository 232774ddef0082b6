"""Who proposes: the options of a search, and what sensitivities make of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.envs import Budget
from haq.errors import ConfigError
from haq.policy import LayerBits
from haq.search import run
from haq.search.agents import penalties_of
from haq.search.sensitivity import Sensitivity

from ..envs.conftest import WIDTHS, make_table


def test_penalties_add_weights_and_activations_and_are_never_negative() -> None:
    budget = Budget(make_table(2), [Constraint("latency", 1.0, relative=True)], WIDTHS, {})
    weights, inputs = np.array([[3.0, 2.0, 1.0], [30.0, 20.0, -10.0]]), np.array([[0.3, 0.2, 0.1], [0.0, 0.0, 0.0]])
    found = penalties_of(Sensitivity("kl", ("conv0", "conv1"), WIDTHS, weights, inputs), budget)
    assert found["conv0"][LayerBits(2, 8)] == pytest.approx(3.1)
    assert found["conv1"][LayerBits(4, 2)] == 20.0
    assert found["conv1"][LayerBits(8, 8)] == 0.0
    assert set(found["conv0"]) == set(budget.pairs)


@pytest.mark.parametrize(("agent", "origins"), [("guided", {"programme", "guided"}), ("haq", {"uniform", "agent"})])
def test_each_agent_searches(tiny: Path, tmp_path: Path, agent: str, origins: set[str]) -> None:
    config = SearchConfig(
        ("latency=50%",), f"{tiny}:model", data=f"{tiny}:data", bits=(2, 4, 8), trials=7, qat_steps=0,
        finetune_steps=0, workers=1, pin_ends=False, agent=agent,  # type: ignore[arg-type]
    )  # fmt: skip
    folder = run(config, tmp_path / "run")
    trials = folder.read_trials()
    assert origins <= {trial.origin for trial in trials}
    assert len({trial.policy for trial in trials}) == 7
    assert folder.sensitivity.is_file() == (agent == "guided")
    if agent == "guided":
        assert set(json.loads(folder.sensitivity.read_text())["measures"]) == {"kl"}


def test_an_unknown_agent_is_refused() -> None:
    with pytest.raises(ConfigError, match="--agent ppo: use guided or haq"):
        SearchConfig(("latency=50%",), agent="ppo")  # type: ignore[arg-type]
