"""A run folder with a network that really learnt, and small networks of every scheme."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.config import SearchConfig
from haq.data import Images, get_data
from haq.errors import ModelError
from haq.hwmodels import CostTable, get_hardware
from haq.io.user_code import call_named
from haq.layers import trace
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, get_scheme, prepare, save_quantized
from haq.quant.evaluation import evaluate
from haq.quant.pipeline import Recipe, apply_policy
from haq.runs import Best, RunFolder

# Extras that this installation lacks; `haq[dev]` has all
_NEEDED = {"onnx": ("onnx", "recurrence"), "qonnx": ("qonnx",), "torchao": ("torchao",)}
collect_ignore = [f"test_{file}.py" for extra, files in _NEEDED.items() if find_spec(extra) is None for file in files]

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.body, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.bn2(self.body(x)))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))

def build():
    return Net()
"""


def weights_alone(policy: BitPolicy) -> BitPolicy:
    """Returns the same widths of weights, with all activations in floating point."""
    return BitPolicy({name: LayerBits(bits.w_bits, None) for name, bits in policy.items()}, policy.scheme)


WIDTHS = {"stem": LayerBits(8, 8), "body": LayerBits(3, 5), "head": LayerBits(4, 4)}


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run folder of a search on the digits, written as `haq.search.run` does, of a network that learnt them."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "net.py").write_text(MODEL)
    run = RunFolder(folder / "run")
    config = SearchConfig(("latency=5ms",), model=f"{folder / 'net.py'}:build")
    data, model = get_data("digits", config.val_images, config.seed), call_named(config.model, "model", ModelError)
    _train(model, data.train)
    torch.save(model.state_dict(), folder / "net.pt")
    config = replace(config, weights=str(folder / "net.pt"))
    policy = BitPolicy(WIDTHS)
    network = apply_policy(model, policy, data, Recipe(get_scheme("linear"))).model
    sample = data.train.batch([0])[0]
    layers = trace(model, sample)
    table = CostTable.build(get_hardware("edge"), layers, range(2, 9), range(2, 9))
    run.write_config(config, {})
    run.write_layers(layers)
    table.save(run.costs)
    save_quantized(run.model, network, policy, sample)
    top1 = evaluate(network, data.test, "ptq").top1
    run.write_best(Best(policy, top1, 0.1, top1, table.cost(policy), {"latency_ms": 5.0}, {}))
    return run


def _train(model: nn.Module, images: Images) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        for x, y in images.batches(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()


class Net(nn.Module):
    """Every kind of layer: a convolution with a bias and a batch norm, a depthwise, a linear one; ReLU and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(torch.relu(self.bn(self.conv(x)))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


class Side(nn.ModuleList):
    """Networks side by side, so that one file is exported for all of them; their logits are concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([net(x) for net in self], 1)


# Every form of grid: binary, one bit, odd codes, zero points, scales within a channel, a float part
GRIDS: list[tuple[str, int | None, int | None, dict[str, str]]] = [
    ("linear", 1, 1, {}),
    ("linear", 3, 3, {"granularity": "group:4"}),
    ("linear", 2, 16, {"granularity": "column"}),
    ("asymmetric", 1, 1, {}),
    ("asymmetric", 4, 6, {"granularity": "tensor"}),
    ("lsq", 8, 4, {}),
    ("dorefa", 3, 2, {}),
    ("pact", 8, 3, {}),
    ("nested", 1, 8, {}),
    ("twn", 2, None, {}),
    ("linear", None, 4, {}),
]

IMAGES = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(1))

Prepared = tuple[nn.Module, BitPolicy]


@pytest.fixture
def prepared() -> Callable[..., Prepared]:
    """Returns a function that gives a quantized `Net` and its policy."""

    def make(scheme: str, w_bits: int | None, a_bits: int | None, **options: object) -> Prepared:
        torch.manual_seed(0)
        net = Net().eval()
        assert net.bn.running_mean is not None
        assert net.bn.running_var is not None
        net.bn.running_mean.normal_()
        net.bn.running_var.uniform_(0.5, 2)
        policy = BitPolicy({name: LayerBits(w_bits, a_bits) for name in ("conv", "depthwise", "fc")}, scheme)
        chosen = get_scheme(scheme, **options)
        widths = {bits for bits in (w_bits, a_bits) if bits is not None}
        return prepare(net, policy, chosen, calibrate(net, [IMAGES], widths, chosen)).eval(), policy

    return make
