"""A run that a search really wrote, and small networks of every scheme."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, get_scheme, prepare
from haq.runs import RunFolder

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
    from sklearn.datasets import load_digits
    torch.manual_seed(0)
    digits, net = load_digits(), Net()
    x = torch.tensor(digits.images[:1000, None] / 8 - 1, dtype=torch.float32)
    y = torch.tensor(digits.target[:1000])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(3):
        for part in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimizer.step()
    return net.eval()
"""


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run folder of `haq search --trials 4`, without fine-tuning, on a network that learnt the digits."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "net.py").write_text(MODEL)
    run = folder / "run"
    options = ["--constraint", "latency=50%", "--trials", "4", "--qat-steps", "0", "--finetune-steps", "0"]
    command = [sys.executable, "-m", "haq", "search", "--model", f"{folder / 'net.py'}:build", "--out", str(run)]
    done = subprocess.run([*command, *options, "--workers", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return RunFolder.open(run)


class Net(nn.Module):
    """Every kind of layer: a convolution with a bias and a batch norm, a depthwise one, a linear one; ReLU and ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(torch.relu(self.bn(self.conv(x)))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


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
