"""An agent's state in a run folder: it runs no code, damaged states are refused, and no other files are left."""

import json
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haq.errors import ConfigError
from haq.registry import AGENTS
from haq.search.tune.searcher import BitSearcher
from haq.testing import Toy


class Payload:
    """Makes a folder named `marker` where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("marker",)


SPOILERS: dict[str, Callable[[Path], object]] = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(Payload())),
    "torch": lambda path: torch.save({"policy": Payload()}, path),
    "old torch": lambda path: torch.save(Payload(), path, _use_new_zipfile_serialization=False),
    "other tensors": lambda path: torch.save({"rest": "{}", "policy": {}}, path),
    "empty": lambda path: path.write_bytes(b""),
    "list": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "other content": lambda path: path.write_text(json.dumps({"scored": 3, "random": {}, "rest": "{}"})),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", AGENTS)
def test_an_invalid_state_is_refused_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    searcher = BitSearcher(*AGENTS[name].agent_for(Toy(0).task))
    for number, spoil in enumerate(SPOILERS.values()):
        path = Path(f"searcher-{number}.pt")
        searcher.save(str(path))
        spoil(path)
        with pytest.raises(ConfigError, match=rf"cannot read 'searcher-{number}\.pt' as the state .*; remove it, and"):
            searcher.restore(str(path))
        assert not Path("marker").exists()


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_leaves_nothing_in_the_temporary_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    toy = Toy(0)
    agent, first = AGENTS[name].agent_for(toy.task)
    for _, policy in first:
        agent.learn(policy, toy.objective(policy))
    agent.propose(dict.fromkeys((policy for _, policy in first), 0.5))
    assert list(tmp_path.iterdir()) == []
