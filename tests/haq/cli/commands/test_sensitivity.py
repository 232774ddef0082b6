import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from haq.cli.main import cli
from haq.errors import HaqError
from haq.search.sensitivity import MEASURES, load_sensitivity
from tests.haq.cli.commands.test_quantize import USER


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(USER)
    return ("--model", "user.py:model", "--data", "user.py:data", "--images", "20")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["sensitivity", *arguments], standalone_mode=False, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_maps_of_every_measure(network: tuple[str, ...]) -> None:
    shown = run(*network, "--measure", "all", "--bits", "2-4,8")
    for measure in MEASURES:
        assert f"\n{measure}: " in shown
    assert shown.count("weights") == shown.count("activations") == 5
    rows = [line.split() for line in shown.splitlines() if line.startswith(("conv1", "conv2", "linear"))]
    assert len(rows) == 2 * 3 * 5
    assert "█" in shown
    assert "measured in" in shown


def test_schemes_for_weights_alone_show_one_map(network: tuple[str, ...]) -> None:
    shown = run(*network, "--bits", "4", "--scheme", "hybrid", "-o", "map.png")
    assert "weights" in shown
    assert "activations" not in shown
    assert Path("map.png").is_file()


def test_values_are_written_and_read_again(network: tuple[str, ...]) -> None:
    first = run(*network, "--bits", "2,8", "-o", "values.json")
    found = load_sensitivity(Path("values.json"))["fisher"]
    assert found.layers == ("conv1", "conv2", "linear")
    assert found.widths == (2, 8)
    assert found.activations is not None
    assert np.isfinite([found.weights, found.activations]).all()
    before = Path("values.json").read_bytes()
    second = run(*network, "--bits", "2,8", "-o", "values.json")
    assert "measured in" in first
    assert "measured in" not in second
    assert first.splitlines()[-8:] == second.splitlines()[-8:]
    assert Path("values.json").read_bytes() == before
    third = run(*network, "--bits", "2,8", "--measure", "sqnr", "-o", "values.json")
    assert "measured in" in third
    assert list(json.loads(Path("values.json").read_text())["measures"]) == ["sqnr"]


def test_maps_are_drawn(network: tuple[str, ...]) -> None:
    run(*network, "--bits", "2,8", "--measure", "kl,sqnr", "-o", "maps.png")
    assert Path("maps.png").read_bytes().startswith(b"\x89PNG")


def test_colours_stand_for_the_values_on_a_terminal(network: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from haq.cli.commands import sensitivity

    painted = Console(force_terminal=True, color_system="truecolor", width=100, record=True)
    monkeypatch.setattr(sensitivity, "console", painted)
    run(*network, "--bits", "2,8")
    text = painted.export_text(styles=True)
    assert "bright is most sensitive" in text
    assert "48;2;253;231;37" in text  # the largest value's background
    assert "█" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--measure", "sqr"),
            "--measure sqr: unknown (did you mean 'sqnr'?); use fisher, kl, loss, sqnr, hessian or all",
        ),
        (("--images", "0"), "--images 0: must be at least 1"),
        (("--seed", "-1"), "--seed -1: must be at least 0"),
        (("--bits", "9"), "9"),
        (("-o", "values.csv"), "-o values.csv: values are written as .json, maps as .png"),
        (("--scheme", "twn"), "--scheme twn is defined for 2 bits, not 3; give --bits in these"),
        (("--scheme", "lsqq"), "unknown scheme 'lsqq' (did you mean 'lsq'?)"),
        (("--model", "user.py:nothing"), "nothing"),
    ],
)
def test_mistakes(network: tuple[str, ...], arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(HaqError) as error:
        cli.main(["sensitivity", *network, *arguments], standalone_mode=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
