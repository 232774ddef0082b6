import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from haq.cli.main import cli
from haq.errors import HaqError
from haq.hwmodels import CostTable, describe_hardware, get_hardware, list_hardware
from haq.hwmodels.tables.formats import read_csv
from haq.layers import LayerSpec
from haq.metrics import format_cost

USER = """
import numpy as np
import torch
from torch import nn


def model():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))


def deeper():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 2))


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.ones(128, 128))

    def forward(self, x):
        return torch.matmul(self.values, x[..., None])[..., 0]


def mixed():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), Mix(), nn.Linear(128, 2))


def wider():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))


def data():
    y = np.arange(40) % 2
    return (np.zeros((40, 1, 4, 4), np.float32), y), (np.zeros((40, 1, 4, 4), np.float32), y)
"""
NARROW = """
name: narrow
kind: bismo
summary: An array that runs two pairs
batch: 2
pairs: [8/8, 4/8]
limits:
  size: {value: 65536, unit: B, source: "chosen: for a test"}
"""
NAMES = ("0", "3")
DATA = ("--data", "user.py:data")
OWN = ("--model", "user.py:model", *DATA)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "user.py").write_text(USER)
    shipped = Path(__file__).resolve().parents[4] / "configs" / "hardware" / "edge.yaml"
    parameters = shipped.read_text(encoding="utf-8").partition("parameters:")
    (tmp_path / "narrow.yaml").write_text(NARROW + parameters[1] + parameters[2], encoding="utf-8")
    costs = CostTable.build(get_hardware("edge"), _layers(), range(1, 9), range(1, 9), batch=4)
    costs.save(tmp_path / "costs.parquet")
    np.save(tmp_path / "cycles.npy", costs.metrics["latency_ms"] * 200e3)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "units.csv").write_text("layer,w_bits,a_bits,latency_us\n0,8,8,1\n3,8,8,1\n")
    (tmp_path / "typo.yaml").write_text(NARROW.replace("summary", "sumary"))
    return tmp_path


def _layers() -> list[LayerSpec]:
    conv = LayerSpec("0", "conv", 1, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1, (4, 4), (4, 4), 1152, 72, 8)
    return [conv, LayerSpec("3", "linear", 128, 2, (1, 1), (1, 1), (0, 0), (1, 1), 1, (1, 1), (1, 1), 256, 256, 2)]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def rows_of(shown: str, first: str) -> list[list[str]]:
    """The cells of the rows that start with `first`; cells are two spaces apart."""
    lines = [re.split(r" {2,}", line.strip()) for line in shown.splitlines()]
    return [cells for cells in lines if cells[0] == first]


# haq hardware


def test_the_list_of_hardware() -> None:
    shown = run("hardware")
    for name in list_hardware():
        assert re.search(rf"^{name}\s", shown, re.MULTILINE)


@pytest.mark.parametrize("name", list_hardware())
def test_every_parameter_is_shown_with_unit_and_source(name: str) -> None:
    shown = run("hardware", name)
    description = describe_hardware(name)
    assert description.name in shown
    for key, parameter in description.parameters.items():
        row = next(line for line in shown.splitlines() if line.startswith(f"{key} "))
        assert f" {parameter.value:.10g} " in row
        assert parameter.unit in row
        assert parameter.source.split()[0] in row


def test_own_hardware() -> None:
    shown = run("hardware", "narrow.yaml")
    assert "4,8/8 bits" in shown
    assert "size 65.5 kB" in shown
    assert rows_of(shown, "limit of size") == [["limit of size", "65536", "B", "chosen: for a test"]]


def test_a_cost_table() -> None:
    shown = run("hardware", "costs.parquet")
    assert rows_of(shown, "hardware") == [["hardware", "edge"]]
    assert rows_of(shown, "layers") == [["layers", "2, 0 to 3"]]
    assert "1-8/1-8 bits" in shown


# haq profile


def test_profile_prices_every_layer_at_every_pair() -> None:
    shown = run("profile", *OWN, "--batch", "4")
    edge = get_hardware("edge")
    for layer in _layers():
        rows = rows_of(shown, layer.name)
        assert [row[1] for row in rows] == [layer.kind] * 2
        assert [row[-1] for row in rows] == ["memory"] * 2
        for row, bits in zip(rows, (8, 4), strict=True):
            pair = next(pair for pair in edge.pairs if (pair.w_bits, pair.a_bits) == (bits, bits))
            assert row[4] == format_cost("latency_ms", edge.cost(layer, pair, 4)["latency_ms"])
    totals = rows_of(shown, "all 2")
    assert [row[1:3] for row in totals] == [["1.41k", "328"]] * 2
    for title in ("8/8 bits: memory binds 2 of 2 layers", "4/4 bits", "GMAC/s over MAC/byte", "● 8/8  ○ 4/4"):
        assert title in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_profile_shares_add_up() -> None:
    shown = run("profile", *OWN)
    for pair in (0, 1):
        shares = [float(rows_of(shown, name)[pair][5].removesuffix("%")) for name in NAMES]
        assert sum(shares) == pytest.approx(100, abs=0.11)


def test_profile_counts_what_no_layer_covers() -> None:
    options = "profile", "--model", "user.py:mixed", *DATA, "--bits", "8/8"
    shown = run(*options)
    row = rows_of(shown, "rest")[0]
    assert row[1:4] == ["not quantized", "16.4k", "16.4k"]
    shares = [float(rows_of(shown, name)[0][5].removesuffix("%")) for name in ("0", "4", "rest")]
    assert sum(shares) == pytest.approx(100, abs=0.11)
    assert rows_of(shown, "all")[0][1:3] == ["17.8k", "16.7k"]
    words = " ".join(shown.split())
    assert "most of the network is not quantized: layers hold 2.0 % of the weights; 3 (16.4 k, 65.5 kB)" in words
    assert "the rest's costs are an estimate: its 16.4k MACs at 8/8 bits" in words
    document = json.loads(run(*options, "--json"))
    assert document["rest"]["weights"] == 128 * 128
    assert document["pairs"][0]["rest"]["size_bytes"] == 4 * 128 * 128
    assert document["pairs"][0]["size_bytes"] == 4 * 128 * 128 + sum(
        layer["size_bytes"] for layer in document["pairs"][0]["layers"]
    )


def test_profile_trains_nothing(folder: Path) -> None:
    shown = run("profile", "--bits", "8/8")
    assert "digits-resnet on edge, batch 16" in shown
    assert not (folder / "cache").exists()


def test_illegal_pairs_are_left_out_and_said() -> None:
    shown = run("profile", *OWN, "--hardware", "narrow.yaml", "--bits", "8/8,4/4")
    assert "model on narrow, batch 2" in shown  # what the hardware file says
    assert "left out: 4/4; hardware 'narrow' runs 4,8/8 bits" in shown
    assert "4/4 bits" not in shown


def test_profile_draws_a_png(folder: Path) -> None:
    assert "roofline: new/roofline.png" in run("profile", *OWN, "-o", "new/roofline.png")
    assert (folder / "new" / "roofline.png").read_bytes().startswith(b"\x89PNG")


# haq table


def test_a_table_goes_through_every_form(folder: Path) -> None:
    run("table", "costs.parquet", "-o", "costs.csv")
    run("table", "costs.csv", "-o", "again.parquet")
    assert (folder / "again.parquet").read_bytes() == (folder / "costs.parquet").read_bytes()
    assert "written: back.npy" in run("table", "costs.csv", "--clock-mhz", "200", "-o", "back.npy")
    assert np.load("back.npy") == pytest.approx(np.load("cycles.npy"))


def test_an_array_gets_names_and_units() -> None:
    shown = run(
        "table", "cycles.npy", *OWN, "--clock-mhz", "200", "--batch", "4", "--hardware", "mine", "--measured",
        "-o", "costs.csv",
    )  # fmt: skip
    assert rows_of(shown, "hardware") == [["hardware", "mine"]]
    assert "measured" in shown
    priced = CostTable.load(Path("costs.parquet")).metrics["latency_ms"]
    table = read_csv(Path("costs.csv"))
    assert (table.layers, table.batch, table.origin) == (NAMES, 4, "measured")
    assert table.metrics["latency_ms"] == pytest.approx(priced)


def test_a_table_is_checked_against_a_model_and_completed() -> None:
    Path("short.csv").write_text(
        "# hardware: mine\n# batch: 4\n# origin: measured\n# version: 1\n"
        "layer,w_bits,a_bits,latency_ms\n0,8,8,1\n3,8,8,2\n"
    )
    shown = run("table", "short.csv", *OWN)
    assert rows_of(shown, "latency_ms") == [["latency_ms", "3.00 ms", "3.00 ms"]]
    assert rows_of(shown, "bops") == [["bops", "90.1 kbops", "90.1 kbops"]]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hardware", "egde"), "unknown hardware 'egde' (did you mean 'edge'?)"),
        (("hardware", "none.yaml"), "hardware file 'none.yaml' does not exist"),
        (("hardware", "typo.yaml"), "typo.yaml: unknown key 'sumary' (did you mean 'summary'?)"),
        (("hardware", "broken.parquet"), "cannot read cost table broken.parquet"),
        (("hardware", "units.csv"), "units.csv: column 'latency_us': a cost table keeps latency in ms"),
        (("profile", *OWN, "--hardware", "egde"), "did you mean 'edge'"),
        (("profile", *OWN, "--hardware", "typo.yaml"), "did you mean 'summary'"),
        (
            ("profile", *OWN, "--hardware", "costs.parquet"),
            "a cost table does not say what binds a layer; see haq table",
        ),
        (("profile", "--model", "resnt20"), "did you mean 'resnet20'"),
        (("profile", "--model", "user.py:model"), "fails on a sample of shape (1, 1, 8, 8)"),
        (("profile", *OWN, "--data", "digit"), "did you mean 'digits'"),
        (("profile", *OWN, "--weights", "none.pt"), "none.pt' does not exist"),
        (("profile", *OWN, "--batch", "0"), "--batch 0: must be at least 1"),
        (("profile", *OWN, "--bits", "8"), "--bits 8: cannot read '8'; write pairs, weights/activations, like 8/8,4/4"),
        (("profile", *OWN, "--bits", "8/8,"), "cannot read ''"),
        (("profile", *OWN, "--bits", "9/8"), "w_bits=9: a width is 1 to 8, 16"),
        (
            ("profile", *OWN, "--bits", "4/4,2/2", "--hardware", "narrow.yaml"),
            "--bits 4/4, 2/2: hardware 'narrow' runs 4,8/8 bits (weights/activations); give some of these pairs",
        ),
        (("profile", *OWN, "-o", "roofline.svg"), "give a file that ends in .png"),
        (("table", "none.csv"), "none.csv' does not exist"),
        (("table", "user.py"), "must end in .parquet, .csv, .npy"),
        (("table", "units.csv", "-o", "out.csv"), "keeps latency in ms"),
        (("table", "cycles.npy", "-o", "out.csv"), "give --clock-mhz"),
        (("table", "cycles.npy", "--clock-mhz", "200", "-o", "out.csv"), "give --model"),
        (("table", "cycles.npy", *OWN, "--clock-mhz", "-3", "-o", "out.csv"), "--clock-mhz -3: must be a positive"),
        (("table", "cycles.npy", *OWN, "--clock-mhz", "fast", "-o", "out.csv"), "'fast' is not a valid float"),
        (
            ("table", "cycles.npy", "--model", "user.py:deeper", *DATA, "--clock-mhz", "2", "-o", "out.csv"),
            "cycles.npy: has 2 layers, but the model has 3",
        ),
        (
            ("table", "costs.parquet", "--model", "user.py:deeper", *DATA, "-o", "out.csv"),
            "costs.parquet: layer '1' of",
        ),
        (("table", "costs.parquet", "--model", "user.py:wider", *DATA, "-o", "out.csv"), "another shape"),
        (("table", "costs.parquet", "--batch", "4", "-o", "out.csv"), "--batch is for .npy files"),
        (("table", "costs.parquet", "--hardware", "mine", "-o", "out.csv"), "--hardware is for .npy files"),
        (("table", "costs.parquet", *DATA, "-o", "out.csv"), "--data needs --model"),
        (("table", "costs.parquet", "-o", "out.npy"), "give --clock-mhz"),
        (("table", "costs.parquet", "-o", "out.xlsx"), "must end in .parquet, .csv, .npy"),
        (("table", "costs.parquet", "-o", "user.py/out.csv"), "cannot write 'user.py/out.csv'"),
    ],
)
def test_mistakes(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    def files() -> set[Path]:
        return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}

    before = files()
    with pytest.raises(Exception) as error:  # noqa: PT011 (click's own and ours)
        cli.main([*arguments], standalone_mode=False)
    shown = error.value.format_message() if hasattr(error.value, "format_message") else str(error.value)
    assert isinstance(error.value, HaqError) or hasattr(error.value, "format_message")
    assert message in shown
    assert "\n" not in shown
    assert files() == before, "nothing is written"


@pytest.mark.parametrize("command", ["hardware", "profile", "table"])
def test_help_shows_examples(command: str) -> None:
    assert "Examples:" in run(command, "--help")


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "haq", "hardware", "egde"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert result.stderr.startswith("error: unknown hardware 'egde'")
