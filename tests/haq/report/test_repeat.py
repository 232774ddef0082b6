from __future__ import annotations

import shlex
from typing import Any

import click
import pytest

from haq.cli.commands.search import search
from haq.config import SearchConfig
from haq.report.repeat import command


@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(("latency=10ms",)),
        SearchConfig(("size <= 60%", "latency=20ms"), model="my net.py:build", weights="a'b.pt", seed=7, workers=1),
        SearchConfig(("size=20%",), pin=("head.*=8/8", "stem=4"), float=("lstm*",), tie=("q,k,v",), bits_of=("e=4,8",)),
        SearchConfig(("size=20%",), scheme="kmeans", weights_only=True, pin_ends=False, bits=(2, 4, 8), agent="haq"),
        SearchConfig(("energy=3mJ",), a_bits=(8,), trials=9, qat_steps=0, rank_by="loss", val_images=50, batch=1),
        SearchConfig(pareto=("latency", "size"), address="head:6379", gpus_per_trial=0.25, workers=4),
    ],
)
def test_the_command_asks_for_the_same_search(config: SearchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    program, name, *arguments = shlex.split(command(config))
    assert (program, name) == ("haq", "search")
    given: dict[str, Any] = {}
    monkeypatch.setattr(search, "callback", lambda **options: given.update(options))
    with click.Context(search) as context:
        search.parse_args(context, arguments)
        context.invoke(search)
    options = {key: value for key, value in context.params.items() if key not in ("out", "resumed", "config_file")}
    found = SearchConfig(**options)
    assert {**found.to_dict(), "constraints": None} == {**config.to_dict(), "constraints": None}
    assert found.parsed_constraints() == config.parsed_constraints()
