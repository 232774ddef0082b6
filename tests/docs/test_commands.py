"""Every command and every piece of Python in the documents is run, at small scale, or listed here with a reason."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from haq.cli.main import cli
from haq.config import SearchConfig
from haq.models import get_model

from .conftest import SEARCH, haq, write_named
from .documents import Block, blocks, commands, inline_code, pages

OTHER_PROGRAMS = {
    "make ": "sets a whole environment up; `make demo` and `make test` are the continuous build",
    ". .venv/bin/activate": "of the shell",
    "head ": "of the shell",
    "ray start": "starts processes that outlive the test; tests/search/tune/test_cluster.py joins a cluster",
    "tensorboard ": "serves until it is stopped",
    "pip install": "downloads",
}
PARSED_ONLY = {
    "hf:": "downloads a model, or is a folder that tests/search/test_transformers.py makes",
    "--address HOST": "needs a cluster; tests/search/tune/test_cluster.py has one",
    "--gpus-per-trial": "needs a GPU",
    "compare-agents": "runs in Ray's workers; tests/search/test_comparison.py runs it",
}

SMALLER = {
    "search": SEARCH,
    "pick": ("--finetune-steps=1",),
    "finetune": ("--epochs=1",),
    "measure": ("--repeats=3", "--bits=2,8"),
    "bench": ("--repeats=3",),
    "sensitivity": ("--images=10", "--bits=2,8"),
    "compare": ("--bits=2",),
}
FEWER_STEPS = ("quantize", "compare")

COMMANDS = list(dict.fromkeys(line for _, line in commands()))
PLACES = {line: page for page, line in reversed(commands())}
OURS = [line for line in COMMANDS if line.startswith("haq ")]


def parsed(line: str) -> tuple[click.Command, dict[str, Any]]:
    """Reads a command line as `haq` would, and checks the options of a search; nothing runs."""
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        return cli, {}
    command = cli.commands[words[0]]
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    names = {field.name for field in fields(SearchConfig)}
    kept = context.params.get("resumed") or context.params.get("config_file")  # a file has the other options
    if words[0] in ("search", "compare-agents") and not kept:
        SearchConfig(**{name: value for name, value in context.params.items() if name in names})
    return command, dict(context.params)


def test_every_command_is_known() -> None:
    unknown = [line for line in COMMANDS if not line.startswith(("haq ", *OTHER_PROGRAMS))]
    assert unknown == [], "run these in a test, or list them with a reason"
    idle = [start for start in OTHER_PROGRAMS if not any(line.startswith(start) for line in COMMANDS)]
    assert [start for start in idle if start != "pip install"] == []
    assert [part for part in PARSED_ONLY if not any(part in line for line in OURS)] == []


@pytest.mark.parametrize("line", OURS)
def test_a_command_does_what_the_page_says(line: str, workspace: Path) -> None:
    """Runs without an error, and leaves the files that it names."""
    for block in blocks("python", "yaml"):
        if block.page == PLACES[line]:
            write_named(block.text, workspace)
    command, options = parsed(line)
    if any(part in line for part in PARSED_ONLY):
        return
    for name in ("out", "output"):
        if (target := options.get(name)) and Path(target).exists():
            (shutil.rmtree if Path(target).is_dir() else Path.unlink)(Path(target))
    if command.name == "measure" and options["output"] is None:
        Path("digits-resnet-cpu.parquet").unlink(missing_ok=True)
    if "my_net.pt" in line:
        save_weights(workspace)
    name = command.name or ""
    more = () if options.get("resumed") else SMALLER.get(name, ())
    if name in FEWER_STEPS and options.get("qat_steps"):
        more = (*more, "--qat-steps=1")
    haq(line, *more)
    for name in ("out", "output"):
        if target := options.get(name):
            assert Path(target).exists(), f"{line}: {target} is missing"


def save_weights(folder: Path) -> None:
    import torch

    from haq.errors import ModelError
    from haq.io.user_code import call_named

    torch.save(call_named(f"{folder / 'my_net.py'}:build", "model", ModelError).state_dict(), folder / "my_net.pt")


# Python

PYTHON = [block for block in blocks("python") if not block.text.startswith("# my_")]
PAGES_WITH_PYTHON = list(dict.fromkeys(block.page for block in PYTHON))
SHORTER = {
    "trials=60": "trials=2, qat_steps=1, finetune_steps=1, val_images=20, workers=1, bits=(2, 4, 8)",
    "steps=50": "steps=1",
    "val_images=1000": "val_images=20",
    "val_images=300": "val_images=20",
}


def runnable(block: Block) -> str:
    """Returns the block in small, up to the first line that says it needs what is not installed."""
    lines = block.text.splitlines()
    end = next((number for number, line in enumerate(lines) if re.search(r"# where .+ is installed", line)), len(lines))
    text = "\n".join(lines[:end])
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
def test_python_of_a_page_runs(page: str, workspace: Path) -> None:
    """Blocks of a page run in order and share their names; `model` is the float network of the run."""
    shown = [block for block in PYTHON if block.page == page]
    names: dict[str, Any] = {"__name__": "page", "model": get_model("digits-resnet").eval()}
    for block in shown:
        if "torchao" in block.text:
            names["model"] = get_model("resnet20").eval()
            weights_only("runs/resnet20-edge-latency-50pct")
            haq("haq export runs/resnet20-edge-latency-50pct --format torchao -o torchao.json")
        exec(compile(runnable(block), page, "exec"), names)


def weights_only(run: str) -> None:
    """Leaves activations of the run's result in floating point, as torchao wants them for convolutions."""
    path = Path(run) / "best.json"
    best = json.loads(path.read_text())
    for bits in best["policy"].values():
        bits["a_bits"] = None
    path.write_text(json.dumps(best))


# What sentences name


def every_option() -> set[str]:
    commands = [cli, *cli.commands.values()]
    return {
        option
        for command in commands
        for parameter in (*command.params, *command.get_help_option_names(click.Context(command)))
        for option in (
            (*parameter.opts, *parameter.secondary_opts) if isinstance(parameter, click.Parameter) else (parameter,)
        )
    }


def test_options_and_commands_in_sentences_exist() -> None:
    known, wrong = every_option(), []
    for page, code in inline_code():
        if re.fullmatch(r"--[a-z][\w-]*( .*)?", code) and code.split()[0].split("=")[0] not in known:
            wrong.append((page, code))
        if code.startswith("haq ") and (words := code.split())[1][0].islower():
            command = cli.commands.get(words[1])
            given = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
            if command is None or set(given) - {o for p in command.params for o in (*p.opts, *p.secondary_opts)}:
                wrong.append((page, code))
    assert wrong == []


def test_every_page_is_in_the_navigation() -> None:
    import yaml

    from .documents import ROOT

    text = (ROOT / ".ci" / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in pages() if page.name != "README.md"}
    assert yaml.safe_load(text)["theme"]["font"] is False
