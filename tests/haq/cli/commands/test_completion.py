"""Completion as a shell asks for it: by environment variables, in a process of its own."""

import os
import subprocess
import sys

import pytest

from haq.cli.main import cli
from haq.config import PASSES, checked_passes
from haq.hwmodels import list_hardware
from haq.models import list_models
from haq.quant.schemes import list_schemes
from haq.registry import MODELS, SCHEMES


def ask(line: str, instruction: str = "bash_complete") -> list[str]:
    words = line.split(" ")
    environment = {"_HAQ_COMPLETE": instruction, "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = subprocess.run(
        [sys.executable, "-m", "haq"], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    return list(filter(None, result.stdout.splitlines()))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("haq sea", ["plain,search"]),
        ("haq search --hard", ["plain,--hardware"]),
        ("haq search --hardware ed", ["plain,edge"]),
        ("haq search --hardware ./mine", ["file,./mine"]),
        ("haq hardware mcu", ["plain,mcu-m4", "plain,mcu-m7"]),
        ("haq search --scheme ls", ["plain,lsq"]),
        ("haq compare --schemes linear,ls", ["plain,linear,lsq"]),
        ("haq compare-agents --agents haq,ha", []),
        ("haq search --agent d", ["plain,ddpg"]),
        ("haq quantize --model resnet2", ["plain,resnet20"]),
        ("haq quantize --ptq cle,ada", ["plain,cle,adaround"]),
        ("haq export --format q", ["plain,qonnx"]),
        ("haq completion f", ["plain,fish"]),
    ],
)
def test_words(line: str, expected: list[str]) -> None:
    assert ask(line) == expected


def test_names_are_those_of_the_registries() -> None:
    assert list_models() == list(MODELS)
    assert list_schemes() == list(SCHEMES)
    assert checked_passes(reversed(PASSES)) == PASSES
    assert {f"plain,{name}" for name in list_hardware()} == set(ask("haq hardware "))


def test_a_completion_imports_nothing_slow() -> None:
    code = (
        "import os, sys; os.environ.update(_HAQ_COMPLETE='bash_complete', COMP_WORDS='haq search --scheme l', "
        "COMP_CWORD='3')\nfrom haq.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "print({'torch', 'ray', 'pandas'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["plain,linear", "plain,lqnets", "plain,lsq", "set()"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "haq", "completion", shell], capture_output=True, text=True, check=True
    )
    assert f"_HAQ_COMPLETE={shell}_complete" in result.stdout
    assert f"haq completion {shell}" in " ".join(str(cli.commands["completion"].epilog).split())


def test_another_shell() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "haq", "completion", "zhs"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: no completion for 'zhs' (did you mean 'zsh'?); use bash, zsh, fish\n"
