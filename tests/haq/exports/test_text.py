"""Widths as text, read back by BitPolicy, JSON Schema and csv; a Markdown table by its rows."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest
import yaml

from haq.errors import ConfigError
from haq.exports import text
from haq.exports.formats import export_run, run_policy
from haq.policy import BitPolicy, LayerBits
from haq.runs import RunFolder

MakeRun = Callable[..., RunFolder]
POLICY = BitPolicy({"0": LayerBits(8, 8), "größe": LayerBits(None, 16), "on": LayerBits(1, 2)}, scheme="kmeans")
SCHEMA = json.loads((files("haq.exports") / "policy.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("write", [text.to_json, text.to_yaml])
def test_the_policy_comes_back_and_fits_the_schema(write: Callable[[BitPolicy], str]) -> None:
    written = write(POLICY)
    data = yaml.safe_load(written)
    assert data == {"version": text.POLICY_VERSION, **POLICY.to_dict()}
    assert BitPolicy.from_dict(data) == POLICY
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA)
    assert "größe" in written
    assert written.endswith("\n")


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 1, "scheme": "linear", "layers": {}},
        {"version": 2, "scheme": "linear", "layers": {"fc": {"w_bits": 4, "a_bits": 4}}},
        {"version": 1, "scheme": "linear", "layers": {"fc": {"w_bits": 9, "a_bits": 4}}},
        {"version": 1, "scheme": "linear", "layers": {"fc": {"w_bits": 4}}},
        {"version": 1, "layers": {"fc": {"w_bits": 4, "a_bits": 4}}},
    ],
)
def test_the_schema_refuses_what_is_no_policy(wrong: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_json_is_indented_and_yaml_keeps_the_order(make_run: MakeRun) -> None:
    policy = run_policy(make_run())
    assert text.to_json(policy).splitlines()[1:3] == ['  "version": 1,', '  "scheme": "linear",']
    names = [line.strip().rstrip(":") for line in text.to_yaml(policy).splitlines() if line[:3] == "  s"]
    assert names == [name for name in policy if name.startswith("s")]


def test_the_scheme_of_the_search_is_named(make_run: MakeRun) -> None:
    run = make_run()
    run.write_config(replace(run.read_config(), scheme="kmeans"), {})
    written = export_run(run, "json")
    assert isinstance(written, str)
    assert json.loads(written)["scheme"] == "kmeans"


def test_csv_has_a_row_for_every_layer(make_run: MakeRun) -> None:
    run = make_run()
    policy, layers = run_policy(run), run.read_layers()
    table = list(csv.DictReader(io.StringIO(text.to_csv(text.rows(run, policy)))))
    assert [row["layer"] for row in table] == [layer.name for layer in layers]
    assert (table[0]["kind"], table[0]["shape"]) == ("conv", "16x16x3x3")
    assert (table[-1]["kind"], table[-1]["shape"]) == ("linear", "10x64")
    assert [(int(row["macs"]), int(row["weights"])) for row in table] == [(s.macs, s.params) for s in layers]
    assert [(int(row["w_bits"]), int(row["a_bits"])) for row in table] == [
        (b.w_bits, b.a_bits) for b in policy.values()
    ]
    assert sum(float(row["latency_share"]) for row in table) == pytest.approx(1, abs=1e-4)


def test_what_is_not_known_is_left_out(make_run: MakeRun) -> None:
    run = make_run()
    run.costs.unlink()
    policy = BitPolicy({**run_policy(run), "stem": LayerBits(8, None)})
    table = text.rows(run, policy)
    assert text.to_csv(table).splitlines()[1].endswith(",8,,")
    heading, rule, first, *_ = text.to_markdown(table).splitlines()
    assert "latency" not in heading
    assert heading.count("|") == rule.count("|") == first.count("|") == 8
    assert first == "| `stem` | conv | 16×16×3×3 | 2,359,296 | 2,304 | 8 | float |"


def test_markdown_shows_shares_and_escapes_names(make_run: MakeRun) -> None:
    run = make_run(names=["a|b"])
    lines = text.to_markdown(text.rows(run, run_policy(run))).splitlines()
    assert lines[0].endswith("| latency |")
    assert lines[2].startswith("| `a\\|b` |")
    assert lines[2].endswith("% |")


def test_a_policy_of_other_layers_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(
        ConfigError, match=r"layer 'stm' of .*best\.json is not in layers\.json \(did you mean 'stem'\?\)"
    ):
        text.rows(run, BitPolicy({"stm": LayerBits(4, 4)}))
