from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from haq.errors import ConfigError
from haq.exports import FORMATS, export_run
from haq.policy import BitPolicy, LayerBits
from haq.runs import RunFolder

MakeRun = Callable[..., RunFolder]


@pytest.mark.parametrize("format", FORMATS)
def test_the_policy_alone_is_exported_and_comes_back(make_run: MakeRun, format: str) -> None:
    run = make_run()
    policy = BitPolicy({"0": LayerBits(8, 8), "größe": LayerBits(None, 16), "on": LayerBits(1, 2)}, scheme="kmeans")
    best = replace(run.read_best(), policy=policy)
    text = export_policy(best, format)
    data = yaml.safe_load(text)
    assert data == policy.to_dict()
    assert BitPolicy.from_dict(data) == policy
    assert "größe" in text
    assert text.endswith("\n")


def test_json_is_indented_and_yaml_keeps_the_order(make_run: MakeRun) -> None:
    best = make_run().read_best()
    lines = export_policy(best, "json").splitlines()
    assert lines[1] == '  "scheme": "linear",'
    names = [line.strip().rstrip(":") for line in export_policy(best, "yaml").splitlines() if line[:3] == "  s"]
    assert names == [name for name in best.policy if name.startswith("s")]


def test_a_file_is_written_where_one_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    text = write_export(run, "json")
    assert isinstance(text, str)
    out = tmp_path / "deep" / "bits.json"
    assert write_export(run, "json", out) == out
    assert out.read_text(encoding="utf-8") == text
    assert BitPolicy.from_dict(json.loads(text)) == run.read_best().policy


def test_an_unknown_format_is_named(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"unknown format 'yml' \(did you mean 'yaml'\?\); known: json, yaml"):
        write_export(make_run(), "yml")


def test_a_run_without_a_result_says_how_to_finish(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match="haq search --resume"):
        write_export(make_run(finished=False), "json")


def test_a_file_that_cannot_be_written_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/bits\.json"):
        write_export(make_run(), "json", tmp_path / "file" / "bits.json")


def test_exporting_imports_nothing_heavy() -> None:
    code = (
        "import sys, haq.export; print(*({'torch', 'ray', 'stable_baselines3', 'plotly', 'pandas'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
