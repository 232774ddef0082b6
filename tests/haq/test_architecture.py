"""Imports run one way, quick commands stay quick, and a checkout is imported as an installation is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from haq.hwmodels import list_hardware

ROOT = Path(__file__).resolve().parents[2]

# Rooms, the lowest first; each may import from itself and from rooms above it in this list
ROOMS = (
    ("__init__", "compiling", "errors", "progress", "progress_bars", "threads", "torch_internals"),
    ("io",),
    ("process_state", "registry"),
    ("metrics",),
    ("constraints", "policy", "rules", "scores"),
    ("config",),
    ("layers",),
    ("data",),
    ("models",),
    ("runs",),
    ("quant",),
    ("hwmodels",),
    ("envs",),
    ("search",),
    ("exports", "report"),
    ("__main__", "cli", "doctor", "testing"),
)
RANK = {name: rank for rank, names in enumerate(ROOMS) for name in names}

FULL = 16  # files in a folder
ALTERNATIVES = {"haq/quant/schemes"}  # folders that list alternatives of one kind
LONGEST = 400  # lines of a file


def sources() -> list[tuple[str, Path]]:
    """Returns the name and the file of every module."""
    found = [
        ("haq." + ".".join(p.relative_to(ROOT / "haq").with_suffix("").parts), p) for p in ROOT.glob("haq/**/*.py")
    ]
    for folder in ("envs", "hwmodels", "search"):
        found += [
            ("haq." + ".".join(p.relative_to(ROOT).with_suffix("").parts), p) for p in (ROOT / folder).glob("**/*.py")
        ]
    return found


def room(module: str) -> str:
    """Returns the room of a module such as `haq.quant.fake`: `quant`."""
    return [*module.split("."), "__init__"][1]


def imported(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def test_every_module_has_a_room() -> None:
    assert {room(name) for name, _ in sources()} <= set(RANK)


def test_imports_run_one_way() -> None:
    for name, path in sources():
        for target in imported(path):
            if target.startswith("haq."):
                assert RANK[room(target)] <= RANK[room(name)], f"{name} imports {target}"
            assert target.split(".")[0] not in ("envs", "hwmodels", "search"), f"{name}: write haq.{target}"


def test_rooms_stay_small() -> None:
    folders: dict[Path, int] = {}
    for name, path in sources():
        folders[path.parent] = folders.get(path.parent, 0) + 1
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, f"{name} is long; split it"
    for folder, count in folders.items():
        place = folder.relative_to(ROOT).as_posix()
        assert count <= FULL or place in ALTERNATIVES, f"{place} has {count} files; give some a room of their own"


def test_heavy_packages_stay_where_they_belong() -> None:
    allowed = {
        "ray": ("haq.search.", "haq.io.user_code"),
        "stable_baselines3": ("haq.search.agents.ddpg", "haq.search.agents.dreamer", "haq.search.agents.sb3_internals"),
        "pymoo": ("haq.search.agents.evolution",),
        "plotly": ("haq.report.",),
        "numba": ("haq.compiling", "haq.hwmodels.kernels.bitserial."),
        "llvmlite": ("haq.hwmodels.kernels.bitserial.",),
        "onnx": ("haq.exports.",),
        "safetensors": ("haq.exports.",),
        "torchao": ("haq.exports.",),
        "matplotlib": ("haq.hwmodels.roofline", "haq.report."),
    }
    for name, path in sources():
        for target in imported(path):
            package = target.split(".")[0]
            assert package not in allowed or name.startswith(allowed[package]), f"{name} imports {target}"


@pytest.mark.parametrize("code", ["import haq.cli", "import haq.exports, haq.runs", "from haq.layers import LayerSpec"])
def test_quick_commands_import_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'ray', 'stable_baselines3', 'plotly', 'pandas', 'transformers', 'datasets'} & set(sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_what_searches_and_exports_imports_no_compiler_of_networks() -> None:
    """It takes two seconds and more, in every process of a search; PyTorch's optimizers import it when they step."""
    imported = "haq.search.running, haq.search.tune.trainable, haq.exports.formats"
    code = f"import sys; import {imported}; print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"'torch._dynamo'", "'numba'"} & set(result.stdout.strip("[]\n").split(", "))


def test_the_checkout_is_importable_from_its_own_folder(tmp_path: Path) -> None:
    """`./haq` shadows an installation when the current directory is the checkout; the sub-packages must be found."""
    code = "import haq.envs.actions, haq.hwmodels, haq.search.problem as o; print(o.__file__)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; {code}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == ROOT / "search" / "problem.py"


def test_a_users_own_folders_are_not_taken_for_ours(tmp_path: Path) -> None:
    """Ray puts the current directory on every worker's path; a user's `search/` must not shadow `haq.search`."""
    for name in ("search", "envs", "hwmodels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    code = "import sys; sys.path.insert(0, ''); import haq.search.tune, haq.envs.actions, haq.hwmodels"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_an_installed_wheel_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
        str(ROOT),
    ]
    built = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if built.returncode:
        raise AssertionError(built.stderr)
    code = (
        "import haq, haq.hwmodels, haq.envs, haq.search.tune; from haq.hwmodels import get_hardware, list_hardware;"
        "print(haq.__file__, haq.hwmodels.__file__, list_hardware(), get_hardware('edge').name)"
    )
    run = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r}); {code}"]
    result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.count(str(target)) == 2
    for folder, place in (("haq", ""), ("envs", "envs"), ("hwmodels", "hwmodels"), ("search", "search")):
        for path in (ROOT / folder).rglob("*.py"):
            assert (target / "haq" / place / path.relative_to(ROOT / folder)).is_file(), f"{path} is not installed"
    assert f"{list_hardware()} edge" in result.stdout
    assert (target / "haq" / "py.typed").is_file()
    assert (target / "haq" / "exports" / "policy.schema.json").is_file()
    shipped = {path.name for path in (target / "haq" / "report").iterdir()}
    assert {path.name for path in (ROOT / "haq" / "report").iterdir() if path.suffix in (".css", ".js")} <= shipped
