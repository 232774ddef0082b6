"""Every parser of what a user or a stranger writes, from bytes; for the test suite and `make fuzz`."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from haq.config import SearchConfig, parse_bits
from haq.constraints import parse_constraint
from haq.data import get_data
from haq.errors import HaqError
from haq.hwmodels import CostTable, get_hardware
from haq.hwmodels.tables.formats import load_table, save_table
from haq.io.prefixes import short_name, source_of
from haq.io.safe_yaml import parse_yaml
from haq.io.user_code import is_reference
from haq.layers import LayerSpec
from haq.models import load_model
from haq.models.registry import load_weights
from haq.policy import BitPolicy
from haq.quant.schemes import get_scheme
from haq.runs import Baseline, Best, RunFolder, Trial
from haq.scores import Score

__all__ = ["PARSERS", "SEEDS", "check"]

_LAYERS = [
    LayerSpec(name, "conv", 4, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8), (8, 8), 9216, 144, 0)
    for name in ("a", "b")
]
_POLICY = BitPolicy.uniform(["a", "b"], 4)
_TABLE = CostTable.build(get_hardware("edge"), _LAYERS, (2, 4), (2, 4))
_SCORE = Score(0.9, 0.3, 9, 0.1, "ptq")
_TRIAL = Trial(1, _POLICY, "agent", {"latency_ms": 1.0}, (_SCORE,), 0.9, 1.0)
_BASELINE = Baseline(8, _SCORE, {"latency_ms": 1.0}, 8)
_TESTED: dict[Any, Any] = {"float": {"test_top1": 0.9, "cost": {"latency_ms": None}}, "uniform8": None}
_BEST = Best(_POLICY, 0.9, 0.3, None, {"latency_ms": 1.0}, {"latency_ms": 2.0}, _TESTED)


def check(name: str, content: bytes) -> bool:
    """Returns whether the parser takes `content`; raises whatever it raises that is no `HaqError`."""
    try:
        PARSERS[name](content)
    except HaqError:
        return False
    return True


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="haq-fuzz-"))


def _in_file(suffix: str, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(content: bytes) -> object:
        path = _folder() / f"content-{os.getpid()}{suffix}"
        path.write_bytes(content)
        return parse(path)

    return run


def _in_run(file: str, read: Callable[[RunFolder], object]) -> Callable[[bytes], object]:
    def run(content: bytes) -> object:
        folder = _folder() / f"run-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_bytes(SEEDS["config.yaml"][0])
        (folder / file).write_bytes(content)
        return read(RunFolder.open(folder))

    return run


def _option(content: bytes) -> object:
    try:
        value = parse_yaml(_text(content))
    except ValueError as error:
        raise HaqError(str(error)) from None
    return get_scheme("linear", granularity=value)


def _policy(path: Path) -> object:
    from haq.policy import BitPolicy

    return BitPolicy.load(path)


def _spec(content: bytes) -> object:
    """Reads the name of a model and of data; one that would run code is left alone."""
    text = _text(content)
    source, _ = source_of(text)
    short_name(text)
    with suppress(HaqError):
        SearchConfig(("latency=1ms",), model=text, data=text, hardware=text, weights=text).with_absolute_paths()
    if is_reference(text) or source in ("hf", "timm", "torchvision", "imagefolder", "text"):
        return text
    for read in (lambda: get_data(text, 10, 0), lambda: load_model(text, None, 2, 1), lambda: get_hardware(text)):
        try:
            read()
        except HaqError:
            continue
    return text


def _weights(path: Path) -> object:
    from torch import nn

    return load_weights(nn.Linear(2, 1), path)


PARSERS: dict[str, Callable[[bytes], object]] = {
    "constraint": lambda content: parse_constraint(_text(content)),
    "bits": lambda content: parse_bits(_text(content)),
    "option": _option,
    "spec": _spec,
    "policy": _in_file(".json", _policy),
    "hardware": _in_file(".yaml", get_hardware),
    "csv": _in_file(".csv", load_table),
    "parquet": _in_file(".parquet", load_table),
    "npy": _in_file(".npy", lambda path: load_table(path, _LAYERS, 100.0)),
    "weights": _in_file(".pt", _weights),
    "config.yaml": _in_run("config.yaml", lambda run: (run.read_config(), run.read_environment())),
    "layers.json": _in_run("layers.json", RunFolder.read_layers),
    "baselines.json": _in_run("baselines.json", RunFolder.read_baselines),
    "trials.jsonl": _in_run("trials.jsonl", RunFolder.read_trials),
    "best.json": _in_run("best.json", RunFolder.read_best),
    "pareto.json": _in_run("pareto.json", RunFolder.read_front),
}
"""Name → what makes an object of bytes, or raises a `HaqError`."""


def _saved(suffix: str) -> bytes:
    path = _folder() / f"seed{suffix}"
    save_table(_TABLE, path)
    return path.read_bytes()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 8, 8)))
    return buffer.getvalue()


def _state() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 1).state_dict(), buffer)
    return buffer.getvalue()


def _json(content: object) -> bytes:
    import json

    return json.dumps(content).encode()


_EDGE = Path(__file__).resolve().parents[2] / "configs" / "hardware" / "edge.yaml"

SEEDS: dict[str, list[bytes]] = {
    "constraint": [b"latency=10ms", b"size<=60%", b"bops = 2G"],
    "bits": [b"2,3,4,6,8", b"2-5,8", b"16"],
    "option": [b"channel", b"'tensor'", b"group:64"],
    "spec": [b"digits", b"my_net.py:build", b"npz:folder", b"hf:a/b", b"board.yaml", b"~/x.parquet"],
    "policy": [_json(_POLICY.to_dict()), yaml.safe_dump(_POLICY.to_dict()).encode(), _json(_POLICY.widths())],
    "hardware": [_EDGE.read_bytes()],
    "csv": [_saved(".csv")],
    "parquet": [_saved(".parquet")],
    "npy": [_npy()],
    "weights": [_state()],
    "config.yaml": [yaml.safe_dump({"search": SearchConfig(("latency=1ms",)).to_dict()}).encode()],
    "layers.json": [_json([asdict(layer) for layer in _LAYERS])],
    "baselines.json": [_json({"float": _BASELINE.to_dict(), "uniform8": None})],
    "trials.jsonl": [_json(_TRIAL.to_dict()) + b"\n"],
    "best.json": [_json(_BEST.to_dict())],
    "pareto.json": [_json([_TRIAL.to_dict()])],
}
"""Valid content for each parser."""
