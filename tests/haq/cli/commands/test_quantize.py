import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from haq.cli.main import cli
from haq.errors import HaqError
from haq.quant.preparation import load_quantized
from haq.quant.schemes import list_schemes

USER = """
import numpy as np
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 2)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(torch.relu(self.bn2(self.conv2(y)) + y).mean((2, 3)))


def model():
    return Tiny().eval()


def data():
    rng = np.random.default_rng(0)
    y = np.arange(160) % 2
    x = rng.normal(0, 0.3, (160, 1, 4, 4)).astype(np.float32)
    x[y == 1] *= 3
    return (x[:120], y[:120]), (x[120:], y[120:])
"""


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(USER)
    return ("--model", "user.py:model", "--data", "user.py:data")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_schemes() -> None:
    shown = run("schemes")
    assert all(name in shown for name in list_schemes())
    assert "https://arxiv.org/abs/1808.05779" in run("schemes", "qil")


def test_quantize_by_policy(network: tuple[str, ...], tmp_path: Path) -> None:
    widths = {"conv1": 8, "conv2": 3, "linear": 8}
    layers = {name: {"w_bits": bits, "a_bits": bits} for name, bits in widths.items()}
    Path("bits.json").write_text(json.dumps({"scheme": "lsq", "layers": layers}))
    shown = run("quantize", *network, "--policy", "bits.json", "--qat-steps", "4", "--integer", "-o", "out.pt")
    for stage in ("float", "calibrated", "fine-tuned", "integer-only", "size"):
        assert stage in shown
    namespace: dict[str, object] = {}
    exec(USER, namespace)
    loaded = load_quantized(Path("out.pt"), namespace["model"]())  # type: ignore[operator]
    assert type(loaded.conv2.weight_quantizer).__name__ == "LSQQuantizer"  # type: ignore[union-attr]


def test_quantize_with_passes(network: tuple[str, ...]) -> None:
    shown = run("quantize", *network, "--bits", "4", "--ptq", "bias,cle,adaround", "--option", "clip=minmax")
    assert "calibrated" in shown


@pytest.mark.parametrize("passes", ["sequential", "none", "auto", "cle,sequential", "bias-analytic"])
def test_what_is_written_can_be_opened_whatever_the_passes(network: tuple[str, ...], passes: str) -> None:
    run("quantize", *network, "--bits", "3", "--ptq", passes, "-o", "out.pt")
    namespace: dict[str, object] = {}
    exec(USER, namespace)
    loaded = load_quantized(Path("out.pt"), namespace["model"]())  # type: ignore[operator]
    folded = passes not in ("sequential", "none")
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.modules()) != folded


def test_bits_are_those_of_weights_and_a_bits_those_of_activations(network: tuple[str, ...]) -> None:
    for extra, expected in (((), 8), (("--a-bits", "4"), 4)):
        run("quantize", *network, "--bits", "3", *extra, "-o", "out.pt")
        layers = torch.load("out.pt", weights_only=True)["policy"]["layers"]
        assert (layers["conv2"]["w_bits"], layers["conv2"]["a_bits"]) == (3, expected)


def test_weights_only(network: tuple[str, ...]) -> None:
    run("quantize", *network, "--bits", "4", "--weights-only", "--scheme", "kmeans", "-o", "out.pt")
    content = torch.load("out.pt", weights_only=True)
    assert {bits["a_bits"] for bits in content["policy"]["layers"].values()} == {None}


def test_compare(network: tuple[str, ...]) -> None:
    shown = run("compare", *network, "--schemes", "linear,twn,hybrid,kmeans", "--bits", "2,4", "--qat-steps", "2")
    rows = [line.split() for line in shown.splitlines()]
    cases = [(row[0], row[1]) for row in rows if row and row[0] in list_schemes()]
    assert cases == [
        ("linear", "2/2"), ("linear", "4/4"), ("twn", "2/8"), ("hybrid", "2/float"), ("hybrid", "4/float"),
        ("kmeans", "2/8"), ("kmeans", "4/8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --policy FILE or --bits N"),
        (("--bits", "4", "--policy", "x.json"), "either --policy FILE or --bits N"),
        (("--bits", "9"), "--bits=9: a width is 1 to 8"),
        (("--policy", "none.json"), "policy file 'none.json' does not exist"),
        (("--policy", "list.json"), "a policy is a mapping"),
        (("--policy", "broken.json"), "cannot read policy 'broken.json'"),
        (("--policy", "unknown.json"), "layer 'conv9' is not in the model (did you mean 'conv"),
        (("--bits", "4", "--ptq", "cel"), "unknown post-training pass 'cel' (did you mean 'cle'"),
        (("--bits", "4", "--qat-steps", "-1"), "--qat-steps -1: must be at least 0"),
        (("--bits", "4", "--option", "clip"), "write KEY=VALUE"),
        (("--bits", "4", "--option", "clip=["), "--option clip=[: while parsing a flow node"),
        (("--bits", "4", "--option", "clp=mse"), "no option 'clp' (did you mean 'clip'?)"),
        (("--bits", "4", "--option", "clip=mes"), "unknown range setting 'mes' (did you mean 'mse'?)"),
        (("--bits", "4", "--scheme", "kmeans", "--integer"), "KMeansQuantizer; integer arithmetic needs"),
        (("--bits", "4", "--scheme", "kmeans", "--ptq", "adaround"), "AdaRound needs a uniform grid"),
    ],
)
def test_mistakes(network: tuple[str, ...], arguments: tuple[str, ...], message: str) -> None:
    Path("list.json").write_text("[1]")
    Path("broken.json").write_text("{")
    Path("unknown.json").write_text('{"conv9": {"w_bits": 4, "a_bits": 4}}')
    with pytest.raises(HaqError) as error:
        cli.main(["quantize", *network, *arguments, "-o", "out.pt"], standalone_mode=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not Path("out.pt").exists()
