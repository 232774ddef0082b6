"""Every format through `export_run` and the command line: what is written where, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from haq.cli.main import cli
from haq.errors import ConfigError
from haq.exports import Format, export_run
from haq.policy import BitPolicy, LayerBits
from haq.registry import EXPORTS
from haq.runs import RunFolder

from .conftest import weights_alone

MakeRun = Callable[..., RunFolder]


def test_a_file_is_written_where_one_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    text = export_run(run, "json")
    assert isinstance(text, str)
    out = tmp_path / "deep" / "bits.json"
    assert export_run(run, "json", out) == out
    assert out.read_text(encoding="utf-8") == text
    assert BitPolicy.from_dict(json.loads(text)) == run.read_best().policy


def test_an_unknown_format_is_named(make_run: MakeRun) -> None:
    message = r"unknown format 'yml' \(did you mean 'yaml'\?\); use one of json, yaml, csv, markdown, onnx, qonnx, "
    with pytest.raises(ConfigError, match=message):
        export_run(make_run(), "yml")


@pytest.mark.parametrize("format", EXPORTS)
def test_a_run_without_a_result_says_how_to_finish(make_run: MakeRun, format: str) -> None:
    run = make_run(finished=False)
    before = sorted(run.path.rglob("*"))
    with pytest.raises(ConfigError, match="haq search --resume"):
        export_run(run, format)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("format", ["onnx", "qonnx", "packed", "packed-folded"])
def test_a_run_without_a_network_says_how_to_finish(make_run: MakeRun, format: str) -> None:
    with pytest.raises(ConfigError, match=r"has no model\.pt; finish it with `haq search --resume"):
        export_run(make_run(), format)


def test_a_file_that_cannot_be_written_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/bits\.json"):
        export_run(make_run(), "json", tmp_path / "file" / "bits.json")


def test_exporting_text_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'stable_baselines3', 'plotly', 'pandas', 'onnx'} & set(sys.modules)"
    code = f"import sys, haq.exports; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_binary_formats_go_into_the_run_folder(searched: RunFolder) -> None:
    result = CliRunner().invoke(cli, ["export", str(searched.path), "--format", "packed"], catch_exceptions=False)
    assert result.output.strip() == str(searched.path / "model.safetensors")
    assert (searched.path / "model.safetensors").is_file()
    assert not list(searched.path.glob(".model*")), "nothing temporary is left"


def test_a_policy_that_the_network_does_not_have_is_refused(searched: RunFolder, tmp_path: Path) -> None:
    best = searched.read_best()
    other = RunFolder(tmp_path)
    other.write_config(searched.read_config(), {})
    other.model.write_bytes(searched.model.read_bytes())
    other.write_best(replace(best, policy=BitPolicy({**best.policy, "body": LayerBits(1, 7)})))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(
        ConfigError, match=r"layer 'body' has \(w_bits, a_bits\) \(1, 7\) in .*best\.json, but \(\d, \d\) in"
    ):
        export_run(other, "packed")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("qonnx", "onnxscript"), ("torchao", "torchao")])
def test_a_missing_package_says_what_to_install(
    searched: RunFolder, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str, package: str
) -> None:
    if package == "onnxscript":
        pytest.importorskip("onnx", reason="it would be missed first")
    monkeypatch.setitem(sys.modules, package, None)
    run = searched
    if format == "torchao":
        run = make_run()
        best = run.read_best()
        run.write_best(replace(best, policy=weights_alone(best.policy)))
    out = tmp_path / "out" / "file"
    message = (
        f"--format {format} needs the package '{package}', which is not installed; pip install 'haq\\[{format}\\]'"
    )
    with pytest.raises(ConfigError, match=message):
        export_run(run, format, out)
    assert not out.parent.exists(), "nothing is written"


def test_help_names_every_format() -> None:
    result = CliRunner().invoke(cli, ["export", "--help"])
    assert all(f"{name}:" in " ".join(result.output.split()) for name in EXPORTS)


def test_quantize_applies_what_was_exported(searched: RunFolder, tmp_path: Path) -> None:
    bits = tmp_path / "bits.yaml"
    export_run(searched, "yaml", bits)
    model = searched.read_config().model
    result = CliRunner().invoke(cli, ["quantize", "--model", model, "--policy", str(bits)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "calibrated" in result.output


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Format("x", text=lambda run, policy: str(1 / 0)), "the format raised ZeroDivisionError"),
        (Format("x", text=lambda run, policy: 7), "the format returned int; return str"),  # type: ignore[arg-type]
        (
            Format("x", file=lambda run, policy, observer, named: "text", default="a"),  # type: ignore[arg-type]
            "the format returned str; return bytes",
        ),
    ],
)
def test_a_format_that_fails_is_one_line(make_run: MakeRun, tmp_path: Path, form: Format, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        form.export(make_run(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_format_has_text_or_a_file() -> None:
    for parts in ({}, {"file": lambda *_: b""}, {"text": lambda *_: "", "file": lambda *_: b"", "default": "a"}):
        with pytest.raises(ConfigError, match="give either text, or file and the default name"):
            Format("x", **parts)
