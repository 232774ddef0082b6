"""What every command prints: for people, with --quiet, with --json; and whether its help is true."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from haq.cli import terminal
from haq.cli.main import cli
from haq.cli.output import Result, output_options, plain
from haq.cli.terminal import TerminalObserver, console
from haq.policy import BitPolicy, LayerBits
from haq.runs import RunFolder
from tests.search.conftest import TINY

QUICK = ("--bits", "2,8", "--workers", "1", "--free-ends", "--constraint", "size=60%")
SEARCH = (*QUICK, "--trials", "3", "--qat-steps", "0", "--finetune-steps", "0")


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@dataclass(frozen=True)
class Home:
    """A folder with a user's network, its measured table, a finished run, and what `haq search --json` printed."""

    folder: Path
    searched: Any

    def arguments(self, line: str, new: Path) -> list[str]:
        own = f"--model {self.folder}/tiny.py:model --data {self.folder}/tiny.py:data"
        words = {"OWN": own, "HOME": str(self.folder), "NEW": str(new), "QUICK": " ".join(QUICK)}
        return shlex.split(re.sub("|".join(words), lambda match: words[match[0]], line))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="module")
def home(in_turn: None, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.py").write_text(TINY + "\n\nprint('hello from the network')\n")
    home = Home(folder, None)
    measured = CliRunner().invoke(
        cli, home.arguments("measure OWN --bits 2,8 --repeats 3 -o HOME/cpu.parquet -q", folder), catch_exceptions=False
    )
    assert measured.stdout == f"{folder}/cpu.parquet\n"
    line = f"search OWN --hardware HOME/cpu.parquet {' '.join(SEARCH)} --out HOME/run --json"
    searched = CliRunner().invoke(cli, home.arguments(line, folder), catch_exceptions=False)
    assert searched.exit_code == 0, searched.stderr
    assert "hello from the network" in searched.stderr
    assert "budget: size" in searched.stderr
    return Home(folder, strict(searched.stdout))


COMMANDS = {
    "hardware": "hardware",
    "hardware edge": "hardware edge",
    "hardware table": "hardware HOME/cpu.parquet",
    "schemes": "schemes",
    "schemes lsq": "schemes lsq",
    "profile": "profile OWN --bits 8/8,4/4",
    "table": "table HOME/cpu.parquet",
    "table -o": "table HOME/cpu.parquet -o NEW/costs.csv",
    "measure": "measure OWN --bits 2 --repeats 3 -o NEW/table.parquet",
    "bench": "bench HOME/run --repeats 3",
    "quantize": "quantize OWN --bits 4",
    "compare": "compare OWN --schemes linear,lsq --bits 2,4",
    "sensitivity": "sensitivity OWN --bits 2,8 --images 20 --measure kl,sqnr",
    "report": "report HOME/run --out NEW/page.html",
    "report two": "report HOME/run HOME/run --out NEW/page.html",
    "export": "export HOME/run",
    "export -o": "export HOME/run --format yaml -o NEW/bits.yaml",
    "doctor": "doctor",
    "finetune": "finetune HOME/run --epochs 1 --out NEW/trained",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_80_columns_of_plain_text_in_a_pipe(name: str, home: Home, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, home.arguments(COMMANDS[name], tmp_path), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert result.stdout
    assert "\x1b" not in result.output
    assert "\r" not in result.output
    copied = ("haq search", str(tmp_path), str(home.folder), "written: ")
    long = [line for line in result.output.splitlines() if len(line.rstrip()) > 80 and not line.startswith(copied)]
    assert not long


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_document(name: str, home: Home, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, [*home.arguments(COMMANDS[name], tmp_path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert isinstance(strict(result.stdout), dict)
    assert "─" not in result.stderr, "tables are for people"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hardware", r"avr\nbitfusion\n.*edge\n.*"),
        ("schemes", r"linear\nasymmetric\n.*"),
        ("table -o", r"{new}/costs\.csv\n"),
        ("report", r"{new}/page\.html\n"),
        ("export -o", r"{new}/bits\.yaml\n"),
        ("quantize", r"network +test top-1 +size *\n─+\nfloat .*\ncalibrated .*\n"),
        ("compare", r"scheme .*\n─+\nlinear .*"),
    ],
)
def test_quiet_is_the_result_alone(name: str, expected: str, home: Home, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, [*home.arguments(COMMANDS[name], tmp_path), "-q"], catch_exceptions=False)
    assert result.exit_code == 0
    assert re.fullmatch(expected.replace("{new}", re.escape(str(tmp_path))), result.stdout, re.DOTALL)
    told = result.stderr.replace("hello from the network\n", "")
    assert not told, "what the user's own code prints is not ours to hide, but nothing else is said"


# The content of the documents


def test_of_a_search(home: Home) -> None:
    run = RunFolder.open(home.folder / "run")
    assert home.searched["run"] == str(run.path)
    assert home.searched["page"] == str(run.page)
    assert home.searched["best"] == json.loads((run.path / "best.json").read_text())
    assert home.searched["summary"]["trials_done"] == 3


def test_of_a_report(home: Home, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, home.arguments("report HOME/run --json --out NEW/page.html", tmp_path))
    assert {**strict(result.stdout), "page": None} == {**home.searched, "page": None}
    assert (tmp_path / "page.html").is_file()


def test_of_a_resumed_search(home: Home, tmp_path: Path) -> None:
    """Output options do not count as options of the search."""
    result = CliRunner().invoke(cli, home.arguments("search --resume HOME/run --quiet", tmp_path))
    assert (result.exit_code, result.stdout) == (0, f"{home.folder}/run\n")


def test_of_costs(home: Home, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, home.arguments("profile OWN --bits 4/4 --hardware mcu-m4 --json", tmp_path))
    found = strict(result.stdout)
    (pair,) = found["pairs"] if found["pairs"] else [None]
    assert (pair["w_bits"], pair["a_bits"]) == (4, 4)
    assert pair["latency_ms"] == pytest.approx(sum(layer["latency_ms"] for layer in pair["layers"]))
    assert found["limits"].keys() == {"size_bytes", "ram_bytes"}
    assert pair["exceeded"] == {}


def test_of_agents(home: Home, tmp_path: Path) -> None:
    line = "compare-agents OWN QUICK --agents evolution,uniform --evaluations 2 --seeds 1 --out NEW/agents --json"
    found = strict(CliRunner().invoke(cli, home.arguments(line, tmp_path)).stdout)
    assert [(agent["agent"], agent["runs"]) for agent in found["agents"]] == [("evolution", 1), ("uniform", 1)]
    assert [Path(file).is_file() for file in found["files"]] == [True, True]


def test_text_that_is_not_json_is_refused_before_it_is_printed(home: Home, tmp_path: Path) -> None:
    arguments = home.arguments("export HOME/run --format yaml --json", tmp_path)
    result = subprocess.run([sys.executable, "-m", "haq", *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: --json with --format yaml, which prints text; give -o FILE, or --format json\n"


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_a_mistake_is_one_line_in_every_mode(option: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "haq", "hardware", "egde", option], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: .*did you mean 'edge'.*\n", result.stderr)
    assert not console.quiet


def test_a_reader_that_has_read_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "haq", "hardware", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


# The mechanism


@click.command()
@click.option("--code", default=0)
@output_options
def _example(code: int) -> Result:
    console.print("for people")
    print("by somebody else")
    with TerminalObserver() as observer:
        observer.say("a note")
    return Result(lambda: {"loss": float("nan")}, ("brief",), exit_code=code)


def test_a_new_command_gets_all_three() -> None:
    def run(*arguments: str) -> tuple[str, str]:
        result = CliRunner().invoke(_example, arguments)
        assert result.exit_code == 0
        return result.stdout, result.stderr

    assert run() == ("for people\nby somebody else\n", "a note\n")
    assert run("-q") == ("brief\n", "by somebody else\n")
    out, err = run("--json")
    assert (strict(out), err) == ({"loss": None}, "by somebody else\na note\n")
    assert run() == ("for people\nby somebody else\n", "a note\n"), "nothing is left behind"
    assert CliRunner().invoke(_example, ["--code", "1", "--json"]).exit_code == 1


def test_plain() -> None:
    policy = BitPolicy({"conv": LayerBits(4, None)})
    assert plain(policy) == {"scheme": "linear", "layers": {"conv": {"w_bits": 4, "a_bits": None}}}
    values = {
        "a": np.float64("inf"),
        "dtype": torch.float16,
        "b": np.arange(2),
        "c": np.bool_(True),
        "d": Path("x"),
        "e": {3, 1},
        4: (),
    }
    assert plain(values) == {
        "a": None,
        "dtype": "torch.float16",
        "b": [0, 1],
        "c": True,
        "d": "x",
        "e": [1, 3],
        "4": [],
    }


def test_progress_in_a_pipe_is_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalObserver() as observer:
        for done in range(101):
            observer.progress("search", done, 100)
        observer.progress("search", 100, 100)
        observer.say("a path stays whole: /" + 100 * "x")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"search: 100/100, 0 s left\na path stays whole:\n/{100 * 'x'}\n"


@pytest.mark.parametrize("setting", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_terminals_without_colour(setting: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumb terminal gets no escape codes; another one without colour may redraw its bars."""
    for key, value in setting.items():
        monkeypatch.setenv(key, value)
    out = Console(stderr=True, force_terminal=True, width=80)
    monkeypatch.setattr(terminal, "notes", out)
    with out.capture() as captured, TerminalObserver() as observer:
        observer.progress("search", 0, 2)
        observer.say("found [it]")
        observer.progress("search", 2, 2)
    shown = captured.get()
    assert "found [it]" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown), "colour"
    if "TERM" in setting:
        assert "\x1b" not in shown
        assert "search: 2/2" in shown


# Help


@pytest.mark.parametrize("name", list(cli.commands))
def test_help_shows_examples_that_can_be_typed(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"]).stdout
    prose, _, listed = shown.partition("Examples:")
    assert max(map(len, prose.splitlines())) <= 80
    lines = [line.strip() for line in listed.splitlines() if line.strip()]
    assert lines
    assert any(line.startswith(f"haq {name}") for line in lines)
    for line in lines:
        typed = re.split(r" {2,}| > ", line)[0]
        program, called, *arguments = shlex.split(typed)
        assert program == "haq"
        cli.commands[called].make_context(called, arguments)  # which refuses unknown options and wrong values


def test_examples_of_the_group() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).stdout.partition("Examples:")[2].splitlines()
    for line in filter(None, map(str.strip, lines)):
        if line.startswith("haq"):
            _, called, *arguments = shlex.split(re.split(r" {2,}", line)[0])
            cli.commands[called].make_context(called, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serch",), "no command 'serch' (did you mean 'search'?)"),
        (("bogus",), "no command 'bogus'; see `haq --help`"),
        (("search", "--hardwar", "x"), "No such option '--hardwar'. Did you mean '--hardware'?"),
        (("report",), "Missing argument 'RUN...'; see `haq report --help`"),
    ],
)
def test_what_click_refuses_comes_with_a_fix(arguments: tuple[str, ...], message: str) -> None:
    result = subprocess.run([sys.executable, "-m", "haq", *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, f"error: {message}\n")
