import itertools
from pathlib import Path

import pytest

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.envs import BitAllocationEnv, Budget
from haq.policy import BitPolicy, LayerBits
from haq.scores import Score
from haq.search import Silent, run
from haq.search.results import Result

from ..envs.conftest import WIDTHS, make_layers, make_table
from ..in_turn import searching_in_turn

FLOAT = Score(0.95, 0.1, 100, 0.0, "float")
SENSITIVITY = {"conv0": 0.3, "conv1": 0.05, "conv2": 0.15}


def toy_objective(policy: BitPolicy) -> float:
    """An accuracy that falls with narrower widths, for some layers more than for others."""
    lost = (SENSITIVITY[n] * (2.0**-b.w_bits + 2.0**-b.a_bits) for n, b in policy.items())  # type: ignore[operator]
    return 0.95 - sum(lost)


def best_of_all(budget: Budget) -> float:
    """The optimum, by enumeration of all 729 policies."""
    names = list(SENSITIVITY)
    every = (
        BitPolicy({n: LayerBits(*widths[2 * i : 2 * i + 2]) for i, n in enumerate(names)})
        for widths in itertools.product(WIDTHS, repeat=6)
    )
    return max(toy_objective(policy) for policy in every if budget.allows(policy))


@pytest.fixture
def env() -> BitAllocationEnv:
    budget = Budget(make_table(3), [Constraint("latency", 0.4, relative=True)], WIDTHS, {})
    return BitAllocationEnv(make_layers(3), budget, float_score=FLOAT)


TINY = '''
import numpy as np
import torch
from torch import nn


class Tiny(nn.Module):
    """Three layers that recognise which half of an image is bright."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 16, 2)

    def forward(self, x):
        return self.linear(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


def data():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 2
    x = rng.normal(0, 0.3, (240, 1, 4, 4)).astype(np.float32)
    x[y == 0, :, :, :2] += 1
    x[y == 1, :, :, 2:] += 1
    return (x[:160], y[:160]), (x[160:], y[160:])


def model():
    net, ((x, y), _) = Tiny(), data()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    return net
'''


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's file with a model and data, so small that a trial takes milliseconds."""
    path = tmp_path_factory.mktemp("user") / "tiny.py"
    path.write_text(TINY)
    return path


def config_for(tiny: Path, **changed: object) -> SearchConfig:
    options: dict[str, object] = {
        "constraints": ("latency=50%", "size=80%"), "model": f"{tiny}:model", "data": f"{tiny}:data", "trials": 8,
        "qat_steps": 3, "finetune_steps": 4, "workers": 1, "bits": (2, 4, 8), "pin_ends": False,
    }  # fmt: skip
    return SearchConfig(**{**options, **changed})  # type: ignore[arg-type]


class Recorder(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.tasks: list[tuple[str, int, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        self.tasks.append((task, done, total))


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished search whose trials ran one after the other; tests must not write into its folder."""
    with searching_in_turn():
        return run(**config_for(tiny).options(), out=tmp_path_factory.mktemp("runs") / "one")
