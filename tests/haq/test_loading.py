import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from haq.errors import ModelError
from haq.loading import call_named, is_reference

NET = """
from torch import nn
class Net(nn.Linear):
    pass
def build():
    return Net(2, 2)
def fails():
    1 / 0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def test_references() -> None:
    assert is_reference("a/b.py:f")
    assert is_reference("package.module:f")
    assert not is_reference("resnet20")
    assert not is_reference("npz:folder/x")


@pytest.mark.parametrize(
    ("name", "message"),
    [("buidl", "did you mean 'build'"), ("fails", "raised ZeroDivisionError: division by zero")],
)
def test_wrong_functions(file: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call_named(f"{file}:{name}", "model", ModelError)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        call_named(f"{tmp_path}/no.py:f", "model", ModelError)
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(ModelError, match="cannot import model .* SyntaxError"):
        call_named(f"{tmp_path}/bad.py:f", "model", ModelError)
    with pytest.raises(ModelError, match="cannot import model 'no.such': ModuleNotFoundError"):
        call_named("no.such:f", "model", ModelError)


def test_objects_of_a_users_class_reach_another_process(file: Path) -> None:
    pickled = cloudpickle.dumps(call_named(f"{file}:build", "model", ModelError))
    code = "import sys; from ray import cloudpickle; print(type(cloudpickle.load(sys.stdin.buffer)).__name__)"
    result = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert result.stdout.strip() == b"Net"
