import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from haq.errors import ModelError
from haq.io.user_code import call_named, is_reference

NET = """
import sys
from torch import nn
class Net(nn.Linear):
    pass
def build():
    return Net(2, 2)
def fails():
    1 / 0
def leaves():
    sys.exit(3)
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
    [
        ("buidl", "did you mean 'build'"),
        ("fails", "raised ZeroDivisionError: division by zero"),
        ("leaves", "raised SystemExit: 3"),
    ],
)
def test_wrong_functions(file: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call_named(f"{file}:{name}", "model", ModelError)


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        call_named(f"{tmp_path}/no.py:f", "model", ModelError)
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(ModelError, match=r"cannot import model .* SyntaxError"):
        call_named(f"{tmp_path}/bad.py:f", "model", ModelError)
    with pytest.raises(ModelError, match=r"cannot import model 'no\.such': ModuleNotFoundError"):
        call_named("no.such:f", "model", ModelError)


def type_in_another_process(thing: object) -> str:
    """Unpickles where the user's folder cannot be imported from, as on a worker, and returns the type's name."""
    code = "import sys; from ray import cloudpickle; print(type(cloudpickle.load(sys.stdin.buffer)).__name__)"
    pickled = cloudpickle.dumps(thing)
    result = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    return result.stdout.decode().strip()


def test_objects_of_a_users_class_reach_another_process(file: Path) -> None:
    assert type_in_another_process(call_named(f"{file}:build", "model", ModelError)) == "Net"


def test_a_users_file_imports_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "haq_test_package"
    package.mkdir()
    (package / "blocks.py").write_text(NET)
    (tmp_path / "top.py").write_text(
        "from haq_test_package.blocks import build\ndef late():\n    import haq_test_late as m\n    return m.build()\n"
    )
    (tmp_path / "haq_test_late.py").write_text(NET)
    assert type_in_another_process(call_named(f"{tmp_path}/top.py:build", "model", ModelError)) == "Net"
    assert type_in_another_process(call_named(f"{tmp_path}/top.py:late", "model", ModelError)) == "Net"


def test_modules_are_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "haq_test_module.py").write_text(NET)
    assert type_in_another_process(call_named("haq_test_module:build", "model", ModelError)) == "Net"


def test_installed_classes_are_not_copied() -> None:
    assert b"torch.nn.modules.activation" in cloudpickle.dumps(call_named("torch.nn:ReLU", "model", ModelError))
