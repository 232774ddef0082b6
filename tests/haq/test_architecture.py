"""Imports run one way, quick commands stay quick, and a checkout is imported as an installation is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from haq.hwmodels import list_hardware

ROOT = Path(__file__).resolve().parents[2]

# Each place may import from itself and from places before it
ORDER = ["foundation", "quant", "hwmodels", "envs", "search", "outlet", "cli"]
OUTLETS = {"report", "exports"}
FACES = {"cli", "doctor", "results", "testing", "__main__"}
HANDING_OUT = {"haq.search.api", "haq.search.__init__"}  # a search returns results that export themselves


def place(module: str) -> str:
    """Returns where a module such as `haq.quant.fake` stands in the order."""
    if module in HANDING_OUT:
        return "cli"
    part = [*module.split("."), "", ""][1]
    if part in OUTLETS:
        return "outlet"
    return "cli" if part in FACES else part if part in ORDER else "foundation"


def sources() -> list[tuple[str, Path]]:
    found = [
        ("haq." + ".".join(p.relative_to(ROOT / "haq").with_suffix("").parts), p) for p in ROOT.glob("haq/**/*.py")
    ]
    for folder in ("envs", "hwmodels", "search"):
        found += [
            ("haq." + ".".join(p.relative_to(ROOT).with_suffix("").parts), p) for p in (ROOT / folder).glob("**/*.py")
        ]
    return found


def imported(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def test_imports_run_one_way() -> None:
    for name, path in sources():
        for target in imported(path):
            if target.startswith("haq."):
                assert ORDER.index(place(target)) <= ORDER.index(place(name)), f"{name} imports {target}"
            assert target.split(".")[0] not in ("envs", "hwmodels", "search"), f"{name}: write haq.{target}"


def test_heavy_packages_stay_where_they_belong() -> None:
    allowed = {
        "ray": ("haq.search.", "haq.loading"),
        "stable_baselines3": ("haq.search.agent", "haq.search.imagination"),
        "pymoo": ("haq.search.evolution",),
        "plotly": ("haq.report.",),
        "numba": ("haq.compiling", "haq.hwmodels.bitserial."),
        "llvmlite": ("haq.hwmodels.bitserial.",),
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
    code = (
        "import sys; import haq.search.running, haq.search.trainable, haq.exports.formats; print(sorted(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"'torch._dynamo'", "'numba'"} & set(result.stdout.strip("[]\n").split(", "))


def test_the_checkout_is_importable_from_its_own_folder(tmp_path: Path) -> None:
    """`./haq` shadows an installation when the current directory is the checkout; the sub-packages must be found."""
    code = "import haq.envs.actions, haq.hwmodels, haq.search.observer as o; print(o.__file__)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; {code}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == ROOT / "search" / "observer.py"


def test_a_users_own_folders_are_not_taken_for_ours(tmp_path: Path) -> None:
    """Ray puts the current directory on every worker's path; a user's `search/` must not shadow `haq.search`."""
    for name in ("search", "envs", "hwmodels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    code = "import sys; sys.path.insert(0, ''); import haq.search.observer, haq.envs.actions, haq.hwmodels"
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
        "import haq, haq.hwmodels, haq.envs, haq.search.observer; from haq.hwmodels import get_hardware, list_hardware;"
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
