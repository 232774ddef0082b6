"""Unusual networks of users: half precision; shared, frozen or transposed weights; one layer or three hundred."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from haq.hwmodels import CostTable
from haq.policy import BitPolicy
from haq.search import run

from .conftest import TINY, config_for

pytestmark = pytest.mark.usefixtures("one_ray")

DATA = TINY[TINY.index("def data") : TINY.index("def model")]
NETS = {
    "half, frozen and transposed": """
def model():
    net = sound().half()
    net.conv2.weight = nn.Parameter(net.conv2.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    net.linear.weight = nn.Parameter(net.linear.weight.detach().t().contiguous().t())
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net
""",
    "tied weights, a layer called twice": """
class Tied(Tiny):
    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.again.weight = self.conv2.weight

    def forward(self, x):
        x = torch.relu(self.again(torch.relu(self.conv2(torch.relu(self.conv1(x))))))
        x = torch.relu(self.conv2(x))
        return self.linear(x.flatten(1))


def model():
    return Tied()
""",
    "one layer": """
class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 2)

    def forward(self, x):
        return self.linear(x.flatten(1))


def model():
    torch.manual_seed(0)
    return One()
""",
    "300 layers": """
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1 if index == 0 else 2, 2, 1) for index in range(299))
        self.linear = nn.Linear(2 * 16, 2)

    def forward(self, x):
        for index, conv in enumerate(self.convs):
            x = torch.relu(conv(x)) + (x if index else 0)
            x = x / x.abs().mean().clamp(min=1)
        return self.linear(x.flatten(1))


def model():
    torch.manual_seed(0)
    return Deep()
""",
}


@pytest.mark.parametrize("name", NETS)
def test_a_search_finishes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(TINY.replace("def model():", "def sound():") + NETS[name])
    layers = 300 if name == "300 layers" else 1 if name == "one layer" else 3
    changed = {
        "agent": "random",
        "trials": 2,
        "qat_steps": 2,
        "finetune_steps": 2,
        "constraints": ("size=90%", "latency=90%"),
    }
    found = run(**config_for(path, bits="2,4,8", **changed).options(), out=tmp_path / "run")
    assert found.finished
    assert [trial.error for trial in found.trials] == [None] * len(found.trials)
    assert len(found.best.policy) in (layers, layers + 1)
    cost = CostTable.load(found.costs).cost(found.best.policy)
    assert all(cost[field] <= limit for field, limit in found.best.constraints.items())
    assert {parameter.dtype for parameter in found.network().parameters()} == {torch.float32}


def test_the_reported_accuracy_is_reproduced_in_a_fresh_process_with_the_exported_policy(
    tiny: Path, tmp_path: Path
) -> None:
    found = run(**config_for(tiny, trials=3).options(), out=tmp_path / "run")
    found.export("json", tmp_path / "bits.json")
    assert BitPolicy.load(tmp_path / "bits.json") == found.best.policy
    code = """
import sys
from pathlib import Path
import torch
from haq.data import get_data
from haq.policy import BitPolicy
from haq.quant.evaluation import evaluate
from haq.quant.modules import Quantized
from haq.search.results import Result

torch.set_num_threads(1)
run, bits = Result.open(Path(sys.argv[1])), BitPolicy.load(Path(sys.argv[2]))
network, config = run.network(), run.read_config()
for name, layer in network.named_modules():
    if isinstance(layer, Quantized):
        assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (bits[name].w_bits, bits[name].a_bits)
print(evaluate(network, get_data(config.data, config.val_images, config.seed).test, "qat").top1)
"""
    command = [sys.executable, "-c", code, str(found.path), str(tmp_path / "bits.json")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) == found.best.test_top1
