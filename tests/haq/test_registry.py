"""Everything that has a name is found the same way, whoever brings it."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace

import pytest

from haq import registry as registries
from haq.errors import ConfigError, HardwareError
from haq.registry import AGENTS, EXPORTS, MODELS, REGISTRIES, SCHEMES, Registry


@pytest.fixture
def tools() -> Registry[object]:
    return Registry("tool", "", {"loads": "json:loads", "dumps": "json:dumps"})


@pytest.mark.parametrize("registry", [*REGISTRIES, MODELS], ids=lambda registry: registry.kind)
def test_all_that_ships_can_be_loaded(registry: Registry[object]) -> None:
    assert len(registry) == len(list(registry)) > 0
    for name in registry:
        assert registry[name] is not None
        assert getattr(registry[name], "name", name) in (name, "")


def test_names_are_listed_without_loading() -> None:
    code = (
        "import sys; from haq.registry import REGISTRIES, MODELS; "
        "print([list(r) for r in (*REGISTRIES, MODELS)] and {'torch', 'ray', 'pymoo'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_what_is_built_in_comes_first_and_cannot_be_replaced(tools: Registry[object]) -> None:
    tools.register("mine", 3)
    assert list(tools) == ["loads", "dumps", "mine"]
    assert tools["loads"] is json.loads
    with pytest.raises(ConfigError, match="tool 'loads' ships with haq; register yours under another name"):
        tools.register("loads", 4)
    tools.register("mine", 5)
    assert tools["mine"] == 5, "a notebook's cell runs again"


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a.py:b", "a/b"])
def test_a_name_that_no_option_can_hold_is_refused(tools: Registry[object], name: str) -> None:
    with pytest.raises(ConfigError, match="must have no spaces, commas, colons or slashes"):
        tools.register(name, 1)


def test_an_unknown_name_is_refused_with_what_was_meant(tools: Registry[object]) -> None:
    with pytest.raises(ConfigError, match=r"unknown tool 'load' \(did you mean 'loads'\?\); use one of loads, dumps"):
        tools["load"]
    with pytest.raises(ConfigError, match=r"--tool load \(did you mean 'loads'\?\): use loads, dumps, file.py:NAME"):
        tools.check("load", "--tool")
    assert "load" not in tools
    tools.check("mine.py:load")


def test_a_users_file_is_run_by_resolve_alone(
    tools: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tool.py").write_text("from pathlib import Path\nPath('ran').touch()\nTOOL = 7\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="unknown tool"):
        tools["my_tool.py:TOOL"]
    assert not Path("ran").exists()
    assert tools.resolve("my_tool.py:TOOL") == 7
    assert Path("ran").exists()
    assert tools["my_tool.py:TOOL"] == 7, "it is known from then on"
    assert "my_tool.py:TOOL" not in list(tools)
    with pytest.raises(ConfigError, match=r"tool 'my_tool.py' has no 'TOOLS'"):
        tools.resolve("my_tool.py:TOOLS")
    with pytest.raises(ConfigError, match="does not exist"):
        tools.resolve("none.py:TOOL")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry[object]:
    """A registry to which an installed package brings a tool that loads, one that does not, and one named as ours."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "haq_tools_plugin.py").write_text("better = 8\n")
    points = {"better": "haq_tools_plugin:better", "broken": "haq_no_such_plugin:x", "loads": "haq_tools_plugin:better"}
    found = EntryPoints(EntryPoint(name, value, "haq.tools") for name, value in points.items())
    for point in found:
        vars(point).update(dist=SimpleNamespace(name="haq-tools"))
    monkeypatch.setattr(registries, "entry_points", lambda group: found if group == "haq.tools" else EntryPoints())
    return Registry("tool", "haq.tools", {"loads": "json:loads"}, HardwareError)


def test_plugins_are_listed_by_package_and_loaded_late(plugin: Registry[object]) -> None:
    assert list(plugin) == ["loads", "better", "broken"]
    assert plugin.plugins == {"better": "haq-tools", "broken": "haq-tools"}
    assert plugin["loads"] is json.loads
    assert plugin["better"] == 8
    with pytest.raises(HardwareError, match="tool 'broken' of the package 'haq-tools' cannot be loaded: Module"):
        plugin["broken"]


def test_problems_of_plugins_are_listed(plugin: Registry[object]) -> None:
    hidden, broken = plugin.plugin_problems()
    assert hidden == "tool 'loads' of the package 'haq-tools' is hidden by haq's own; it needs another name"
    assert broken.startswith("tool 'broken' of the package 'haq-tools' cannot be loaded")


def test_entry_points_have_the_documented_groups() -> None:
    assert [registry.group for registry in (AGENTS, SCHEMES, EXPORTS)] == ["haq.agents", "haq.schemes", "haq.exports"]


PLUGIN = """
[haq.agents]
greedy = haq_plugin:GREEDY
[haq.exports]
header = haq_plugin:HEADER
[haq.metrics]
broken = haq_no_such_module:X
"""


def test_an_installed_plugin_is_listed_and_a_broken_one_is_a_problem(tmp_path: Path) -> None:
    """With a real distribution on the path: help and completion load none of it, the doctor says what is wrong."""
    info = tmp_path / "haqplugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: haqplugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(PLUGIN)
    (tmp_path / "haq_plugin.py").write_text(
        "from haq.exports import Format\nGREEDY = 1\nHEADER = Format('x', text=str)\n"
    )

    def haq(*words: str) -> str:
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "haq", *words],
            env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return " ".join((done.stdout + done.stderr).split())

    assert "greedy (of haqplugin)" in haq("search", "--help")
    assert "header: of haqplugin" in haq("export", "--help")
    shown = haq("doctor")
    assert "greedy (haqplugin), header (haqplugin), broken (haqplugin)" in shown
    assert "metric 'broken' of the package 'haqplugin' cannot be loaded: ModuleNotFoundError" in shown
