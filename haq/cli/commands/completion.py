"""Completion in shells: `haq completion`, and which names complete which option."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

import click
from click.shell_completion import CompletionItem, get_completion_class

from haq.cli.options import examples
from haq.config import PASSES, RankByOption
from haq.errors import ConfigError, did_you_mean
from haq.metrics import METRICS
from haq.registry import AGENTS, EXPORTS, MODELS, SCHEMES

__all__ = ["add_completions", "completion"]

_SHELLS = {
    "bash": "haq completion bash > ~/.local/share/bash-completion/completions/haq",
    "zsh": "haq completion zsh > ~/.zfunc/_haq    with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc",
    "fish": "haq completion fish > ~/.config/fish/completions/haq.fish",
}
_VARIABLE = "_HAQ_COMPLETE"

Completer = Callable[[str], list[CompletionItem]]


@click.command(epilog=examples(*_SHELLS.values()))
@click.argument("shell", metavar="bash|zsh|fish")
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the script that lets a shell complete commands, options and names with TAB.

    The examples install it; open a new shell afterwards.
    """
    if shell not in _SHELLS:
        raise ConfigError(f"no completion for {shell!r}{did_you_mean(shell, _SHELLS)}; use {', '.join(_SHELLS)}")
    found = get_completion_class(shell)
    assert found is not None, "click knows these three"
    click.echo(found(context.find_root().command, {}, "haq", _VARIABLE).source())


def add_completions(group: click.Group) -> None:
    """Lets every option and argument whose name is known complete the names that it takes."""
    for command in group.commands.values():
        for parameter in command.params:
            key = parameter.opts[-1] if isinstance(parameter, click.Option) else f"{command.name} {parameter.name}"
            if key in _COMPLETED:
                assert isinstance(parameter.type, click.types.StringParamType), "another type would be lost"
                parameter.type = _Completed(_COMPLETED[key])


class _Completed(click.types.StringParamType):
    """Text that names complete."""

    def __init__(self, complete: Completer) -> None:
        self._complete = complete

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return self._complete(incomplete)


def _hardware() -> Iterable[str]:
    from haq.hwmodels import list_hardware

    return list_hardware()


def _one(names: Callable[[], Iterable[str]]) -> Completer:
    """Completes one of the names; what starts none of them may be a file."""

    def complete(incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]

    return complete


def _several(names: Callable[[], Iterable[str]]) -> Completer:
    """Completes the last of names with commas between them, with one that is not there yet."""

    def complete(incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [CompletionItem(before + comma + n) for n in names() if n.startswith(last) and n not in given]

    return complete


_COMPLETED: dict[str, Completer] = {
    "--agent": _one(lambda: AGENTS),
    "--agents": _several(lambda: AGENTS),
    "--data": _one(lambda: ("digits",)),
    "--device": _one(lambda: ("cpu", "cuda")),
    "--format": _one(lambda: EXPORTS),
    "--hardware": _one(_hardware),
    "--measure": _several(lambda: ("fisher", "kl", "loss", "sqnr", "hessian", "all")),
    "--model": _one(lambda: MODELS),
    "--pareto": _several(lambda: [name for name in METRICS if METRICS[name].combine != "peak"]),
    "--ptq": _several(lambda: (*PASSES, "auto", "none")),
    "--rank-by": _one(lambda: get_args(RankByOption)),
    "--scheme": _one(lambda: SCHEMES),
    "--schemes": _several(lambda: (*SCHEMES, "all")),
    "--weights": _one(lambda: ()),
    "completion shell": _one(lambda: _SHELLS),
    "hardware name": _one(_hardware),
    "schemes name": _one(lambda: SCHEMES),
}
"""Option, or command and argument → its completion. Options of one name take the same names everywhere."""
