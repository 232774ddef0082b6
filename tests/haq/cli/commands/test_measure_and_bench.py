import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from haq.cli.main import cli
from haq.data import ImageData, Images
from haq.errors import HaqError, ModelError
from haq.hwmodels import CostTable, get_hardware
from haq.hwmodels.tables.formats import load_table
from haq.io.user_code import call_named
from haq.layers import trace
from haq.models import open_untrained
from haq.policy import BitPolicy, LayerBits
from haq.quant.preparation import prepare, save_quantized
from haq.runs import RunFolder
from tests.search.conftest import TINY

NAMES = ("conv1", "conv2", "linear")
BITS = ("--bits", "2,8")
QUICK = ("--repeats", "3")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def fails(*arguments: str) -> str:
    """Runs a command that must fail, and returns its error line."""
    with pytest.raises(Exception) as error:  # noqa: PT011 (click's own and ours)
        cli.main([*arguments], standalone_mode=False)
    assert isinstance(error.value, HaqError) or hasattr(error.value, "format_message")
    shown = error.value.format_message() if hasattr(error.value, "format_message") else str(error.value)
    assert "\n" not in shown
    return shown


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers are so small that threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(in_turn: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network, its measured table, and the run of a search that took it as hardware."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.py").write_text(
        TINY + "\n\ndef other():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))\n"
        "\n\ndef wider():\n    net = Tiny()\n    net.conv1, net.conv2 = nn.Conv2d(1, 8, 3, padding=1), "
        "nn.Conv2d(8, 4, 3, padding=1)\n    return net\n"
    )
    own = ("--model", f"{folder / 'tiny.py'}:model", "--data", f"{folder / 'tiny.py'}:data")
    table = str(folder / "cpu.parquet")
    (folder / "measured.txt").write_text(run("measure", *own, *BITS, *QUICK, "-o", table))
    run(
        "search", *own, *BITS, "--hardware", table, "--constraint", "size=60%", "--trials", "3", "--qat-steps", "0",
        "--finetune-steps", "0", "--workers", "1", "--free-ends", "--out", str(folder / "run"),
    )  # fmt: skip
    return folder


@pytest.fixture
def searched(home: Path, tmp_path: Path) -> RunFolder:
    """A copy of the run, to be spoilt."""
    return RunFolder.open(Path(shutil.copytree(home / "run", tmp_path / "run")))


@pytest.fixture
def own(home: Path) -> tuple[str, ...]:
    return ("--model", f"{home / 'tiny.py'}:model", "--data", f"{home / 'tiny.py'}:data")


# haq measure


def test_measure_writes_a_table(home: Path) -> None:
    table = load_table(home / "cpu.parquet")
    assert (table.layers, table.w_bits, table.a_bits, table.batch) == (NAMES, (2, 8), (2, 8), 1)
    assert table.origin == "measured"
    assert not (home / "cpu.parquet.partial").exists()


def test_measure_says_what_it_found(home: Path) -> None:
    shown = (home / "measured.txt").read_text()
    assert "3 layers of 3 shapes, 4 pairs of widths" in shown
    for label in ("device", "kernels", "whole network", "spread", "monotone fit", "energy"):
        assert re.search(rf"^{label} {{2,}}\S", shown, re.MULTILINE)
    assert f"written: {home / 'cpu.parquet'}" in shown


def test_what_is_shown_fits_a_terminal(home: Path) -> None:
    lines = (home / "measured.txt").read_text().splitlines()
    assert max(len(line) for line in lines if not line.startswith("written")) <= 80


def test_measured_tables_are_shown_and_converted(home: Path, tmp_path: Path) -> None:
    run("table", str(home / "cpu.parquet"), "-o", str(tmp_path / "cpu.csv"))
    table, again = load_table(home / "cpu.parquet"), load_table(tmp_path / "cpu.csv")
    np.testing.assert_array_equal(again.metrics["latency_ms"], table.metrics["latency_ms"])
    assert again.provenance == table.provenance
    assert "measured" in run("hardware", str(home / "cpu.parquet"))


def test_a_built_in_network_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the default one need training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HAQ_CACHE", str(tmp_path / "cache"))
    run("measure", "--bits", "2", "--batch", "2", *QUICK)
    assert load_table(tmp_path / "digits-resnet-cpu.parquet").batch == 2
    assert not (tmp_path / "cache").exists()


def test_open_untrained(tmp_path: Path) -> None:
    images = Images(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), (0.5,) * 3, (0.5,) * 3)
    data = ImageData("given", images, images, images, 7)
    random = open_untrained("resnet20", None, data)
    assert not random.training
    assert random(images.batch([0, 1])[0]).shape == (2, 7)
    torch.save(random.state_dict(), tmp_path / "weights.pt")
    loaded = open_untrained("resnet20", str(tmp_path / "weights.pt"), data).state_dict()
    assert all(torch.equal(loaded[name], values) for name, values in random.state_dict().items())
    with pytest.raises(ModelError, match="did you mean 'resnet20'"):
        open_untrained("resnet200", None, data)


STOPPING = """
import os, signal, sys
from haq.cli import main
from haq.hwmodels.measuring.journal import Journal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore it
stop, keep = int(sys.argv.pop(1)), Journal.__setitem__

def keep_and_stop(journal, key, value):
    keep(journal, key, value)
    os.kill(os.getpid(), stop)

Journal.__setitem__ = keep_and_stop
main()
"""


@pytest.mark.parametrize(
    ("stop", "code", "last"), [(signal.SIGINT, 130, "stopped"), (signal.SIGKILL, -signal.SIGKILL, None)]
)
def test_a_stopped_measurement_is_resumed_by_the_same_command(
    stop: int, code: int, last: str | None, own: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["measure", *own, *BITS, *QUICK, "-o", str(tmp_path / "cpu.parquet")]
    program = [sys.executable, "-c", STOPPING, str(int(stop)), *arguments]
    process = subprocess.run(program, capture_output=True, text=True, check=False)
    assert process.returncode == code, process.stderr
    assert last is None or process.stderr.splitlines()[-1] == last
    journal = tmp_path / "cpu.parquet.partial"
    assert len(journal.read_text().splitlines()) == 2, "a header, and what was measured"
    assert not (tmp_path / "cpu.parquet").exists()

    module, taken = importlib.import_module("haq.hwmodels.measuring.measure"), []
    sample = module.sample
    monkeypatch.setattr(module, "sample", lambda *a: taken.append(a) or sample(*a))
    run(*arguments)
    assert len(taken) == 2, "of three: what was measured is kept"
    assert load_table(tmp_path / "cpu.parquet").layers == NAMES
    assert not journal.exists()


# haq bench


def test_search_takes_the_measured_table(home: Path) -> None:
    folder = RunFolder.open(home / "run")
    assert folder.finished
    own, given = CostTable.load(folder.costs), load_table(home / "cpu.parquet")
    assert own.origin == "measured"
    np.testing.assert_array_equal(own.metrics["latency_ms"], given.metrics["latency_ms"])
    assert folder.read_best().cost["latency_ms"] == pytest.approx(given.cost(folder.read_best().policy)["latency_ms"])
    assert folder.read_config().batch == 1


def check_bench(folder: RunFolder, shown: str) -> None:
    """Holds `bench.json` and what is printed against the run."""
    content = json.loads((folder.path / "bench.json").read_text())
    assert set(content) >= {
        "layers", "predicted", "measured", "predicted_rest", "measured_rest", "predicted_total", "total", "spread",
        "float32", "int8", "kernels", "top1", "machine",
    }  # fmt: skip
    best = folder.read_best()
    assert tuple(content["layers"]) == NAMES
    assert len(content["predicted"]) == len(content["measured"]) == len(NAMES)
    assert content["predicted_total"] == pytest.approx(sum(content["predicted"]) + content["predicted_rest"])
    assert content["top1"]["fake-quantized"] == best.test_top1
    assert content["top1"]["this network"] == pytest.approx(best.test_top1, abs=0.03)  # a flipped code here and there
    assert ("int8 (PyTorch)" in content["top1"]) == (content["int8"] is not None)
    assert content["machine"]["torch"] == torch.__version__
    for name, bits in best.policy.items():
        assert re.search(rf"^{name} +{bits.w_bits} / {bits.a_bits} +\S+ [mµn]?s +\S+ [mµn]?s +[+-]\S+%", shown, re.M)
    for label in ("the rest", "total", "float32 (PyTorch)", "this network", "fake-quantized"):
        assert re.search(rf"^{re.escape(label)} +\S", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 80


def test_bench_of_a_search_on_a_measured_table(searched: RunFolder) -> None:
    shown = run("bench", str(searched.path), *QUICK)
    assert "no measured table given" not in shown
    check_bench(searched, shown)


def test_bench_by_another_table(searched: RunFolder, home: Path) -> None:
    own = CostTable.load(home / "cpu.parquet")
    doubled = replace(own, metrics={**own.metrics, "latency_ms": 2 * own.metrics["latency_ms"]})
    doubled.save(searched.path / "doubled.parquet")
    run("bench", str(searched.path), "--table", str(searched.path / "doubled.parquet"), *QUICK)
    predicted = json.loads((searched.path / "bench.json").read_text())["predicted"]
    expected = own.layer_costs(searched.read_best().policy, "latency_ms")
    assert predicted == pytest.approx(list(2 * expected))


def test_bench_for_a_batch_beyond_the_test_images(searched: RunFolder, home: Path) -> None:
    replace(CostTable.load(home / "cpu.parquet"), batch=100).save(searched.costs)
    searched.seal(searched.costs)
    assert "Batch 100, one core" in run("bench", str(searched.path), *QUICK)


def test_bench_of_a_search_on_a_model_measures_first(searched: RunFolder) -> None:
    CostTable.build(get_hardware("edge"), searched.read_layers(), (2, 8), (2, 8)).save(searched.costs)
    searched.seal(searched.costs)
    shown = run("bench", str(searched.path), *QUICK)
    assert "measuring the widths of this network first" in shown
    check_bench(searched, shown)
    assert not (searched.path / "bench.partial").exists()


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "--device tpu: unknown; use cpu or cuda"),
        (("--bits", "9"), "--bits: 9 is not a width"),
        (("--bits", "16"), "--bits 16: bit-serial kernels take widths of 1 to 8 bits"),
        (("--bits", "0-3"), "--bits: 0 is not a width"),
        (("--bits", "wide"), "cannot read 'wide'"),
        (("-o", "taken.parquet"), "-o taken.parquet exists; remove it, or give another name"),
        (("-o", "none/cpu.parquet"), "-o none/cpu.parquet: folder 'none' does not exist; make it first"),
        (("-o", "table.csv"), "-o table.csv: a measured table is written as .parquet; haq table converts it to .csv"),
        (("--repeats", "1"), "--repeats 1: must be at least 3"),
        (("--batch", "0"), "--batch 0: must be at least 1"),
        (("--repeats", "many"), "'many' is not a valid integer"),
        (("--model", "resnt20"), "did you mean 'resnet20'"),
        (("--model", "nowhere.py:f"), "nowhere.py' does not exist"),
        (("--weights", "none.pt"), "none.pt' does not exist"),
        (("--data", "digit"), "did you mean 'digits'"),
        (("-o", "begun.parquet"), "begun.parquet.partial holds another measurement that was interrupted"),
    ],
)
def test_mistakes_in_measuring(
    own: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.parquet").write_text("")
    (tmp_path / "begun.parquet.partial").write_text('{"header": {}}\n')
    before = files(tmp_path)
    assert message in fails("measure", *own, *arguments)
    assert files(tmp_path) == before, "nothing is written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_a_gpu_that_is_not_there(own: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--device cuda" in fails("measure", *own, "--device", "cuda")
    assert not files(tmp_path)


def test_a_network_that_the_kernels_cannot_run(home: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n\n\ndef model():\n    conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode='reflect')\n"
        "    return nn.Sequential(conv, nn.Flatten(), nn.Linear(32, 2))\n"
    )
    shown = fails(
        "measure", "--model", f"{tmp_path}/odd.py:model", "--data", f"{home}/tiny.py:data",
        "-o", str(tmp_path / "cpu.parquet"),
    )  # fmt: skip
    assert "layer '0' pads with padding=(1, 1), padding_mode='reflect'" in shown
    assert not (tmp_path / "cpu.parquet").exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments in (("measure", "--device", "tpu"), ("bench", "none")):
        command = [sys.executable, "-m", "haq", *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "run folder 'none' does not exist; give the folder that `haq search` wrote"),
        (("empty",), "run folder 'empty' has no config.yaml, so it is not a run folder"),
        (("run", "--repeats", "2"), "--repeats 2: must be at least 3"),
        (("run", "--table", "none.parquet"), "cost table 'none.parquet' does not exist"),
        (("run", "--table", "table.txt"), "'table.txt' is no cost table; its name must end in .parquet, .csv"),
        (("run", "--table", "other.parquet"), "other.parquet: layer 'conv1' of the network is not in the cost table"),
        (("run", "--table", "wider.parquet"), "of layer 'conv1' is "),
        (("run", "--table", "narrow.parquet"), "the cost table of 'edge' covers 4; build it again with --bits"),
    ],
)
def test_mistakes_in_benching(
    searched: RunFolder,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, function, bits in (("other", "other", (2, 8)), ("wider", "wider", (2, 8)), ("narrow", "model", (4,))):
        layers = trace(call_named(f"{home / 'tiny.py'}:{function}", "model", HaqError), torch.zeros(1, 1, 4, 4))
        CostTable.build(get_hardware("edge"), layers, bits, bits).save(tmp_path / f"{name}.parquet")
    before = files(tmp_path)
    assert message in fails("bench", *arguments)
    assert files(tmp_path) == before, "nothing is written"


def test_runs_that_the_kernels_do_not_compute(searched: RunFolder) -> None:
    before = files(searched.path)
    best = searched.read_best()
    for bits in (LayerBits(4, None), LayerBits(16, 8), LayerBits(8, 16)):
        searched.write_best(replace(best, policy=BitPolicy.uniform(NAMES, 4, {"conv2": bits})))
        assert "the kernels run weights and activations of 1 to 8 bits; this network has" in fails(
            "bench", str(searched.path)
        )
    assert files(searched.path) == before


def test_a_scheme_that_the_kernels_do_not_compute_is_refused_before_measuring(searched: RunFolder) -> None:
    config = searched.read_config()
    model = call_named(config.model, "model", HaqError)
    policy = BitPolicy(searched.read_best().policy, "kmeans")
    save_quantized(searched.model, prepare(model, policy), policy, torch.zeros(1, 1, 4, 4))
    CostTable.build(get_hardware("edge"), searched.read_layers(), (2, 8), (2, 8)).save(searched.costs)
    searched.seal(searched.model)
    searched.seal(searched.costs)
    before = files(searched.path)
    assert "are quantized by KMeansQuantizer" in fails("bench", str(searched.path))
    assert files(searched.path) == before


def test_a_run_without_its_network(searched: RunFolder) -> None:
    searched.model.unlink()
    assert f"has no model.pt; finish it with `haq search --resume {searched.path}`" in fails(
        "bench", str(searched.path)
    )


@pytest.mark.parametrize("command", ["measure", "bench"])
def test_help_shows_examples(command: str) -> None:
    assert "Examples:" in run(command, "--help")
