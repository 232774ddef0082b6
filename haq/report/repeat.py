"""The command that repeats a search."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from haq.config import SearchConfig
from haq.rules import RULES

__all__ = ["command"]

_ALWAYS = ("model", "weights", "data", "hardware", "batch", "seed")
_REPEATED = {"constraints": "--constraint"} | {str(kind): "--" + kind.replace("_", "-") for kind in RULES}
_FLAGS = {"weights_only": ("--weights-only", ""), "pin_ends": ("", "--free-ends")}


def command(config: SearchConfig) -> str:
    """Returns the command line of the same search, for a POSIX shell.

    The most important options are always there; others only where they differ from today's defaults. A search that
    started from given widths is repeated from the run folder's `config.yaml`, which holds them.

    Examples:
        >>> command(SearchConfig(("latency=10ms",), batch=16, workers=2, trials=80, pin_ends=False))
        'haq search --constraint latency=10ms --model digits-resnet --data digits --hardware edge --batch 16 \
--trials 80 --free-ends --workers 2 --seed 0'
    """
    if config.start is not None:
        return "haq search --config config.yaml"
    default = SearchConfig(("latency=1ms",)).to_dict()
    words = ["haq", "search"]
    for name, option in _REPEATED.items():
        for value in getattr(config, name):
            words += [option, value.replace(" ", "")]
    for name, value in config.to_dict().items():
        if name in _FLAGS:
            words += [flag] if (flag := _FLAGS[name][not value]) else []
        elif name in _REPEATED or value is None:
            continue
        elif name in (*_ALWAYS, "workers") or value != default[name]:  # the default of workers depends on the machine
            words += ["--" + name.replace("_", "-"), _shown(value)]
    return shlex.join(words)


def _shown(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)
