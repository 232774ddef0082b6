from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from haq.config import SearchConfig, parse_bits
from haq.constraints import Constraint
from haq.errors import ConfigError, ConstraintError, HaqError
from haq.policy import WIDTHS, BitPolicy, LayerBits

BUDGET = ("latency=10ms",)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("4", (4,)),
        ("8,2,4", (2, 4, 8)),
        ("2-5, 8", (2, 3, 4, 5, 8)),
        ("2-4,3-5", (2, 3, 4, 5)),
        ("1-8,16", (1, 2, 3, 4, 5, 6, 7, 8, 16)),
    ],
)
def test_widths_are_read_once_each_and_ascending(text: str, widths: tuple[int, ...]) -> None:
    assert parse_bits(text) == widths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''"),
        ("2,", "cannot read ''"),
        ("two", "cannot read 'two'"),
        ("-2", "cannot read '-2'"),
        ("2-", "cannot read '2-'"),
        ("8-2", "the range 8-2 is empty"),
        ("0", "0 is not a width"),
        ("8-16", "9 is not a width"),
        ("999", "999 is not a width"),
        ("1-99999999", "cannot read"),
    ],
)
def test_wrong_widths_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_bits(text)


@given(st.sets(st.sampled_from(WIDTHS), min_size=1))
def test_listed_widths_come_back(widths: set[int]) -> None:
    assert parse_bits(",".join(map(str, widths))) == tuple(sorted(widths))


def test_json_and_yaml_round_trips_are_exact() -> None:
    config = SearchConfig((*BUDGET, "size=60%"), bits=(2, 4, 8), weights="w.pt", seed=7, rank_by="loss")
    data = config.to_dict()
    assert SearchConfig.from_dict(json.loads(json.dumps(data))) == config
    assert SearchConfig.from_dict(yaml.safe_load(yaml.safe_dump(data))) == config
    assert [str(constraint) for constraint in config.parsed_constraints()] == [
        "latency ≤ 10.0 ms",
        "size ≤ 0.6 of uniform 8-bit",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "--trials 0: must be at least 1"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"qat_steps": -1}, "--qat-steps -1: must be at least 0"),
        ({"val_images": 0}, "--val-images 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"bits": ()}, "no widths to search"),
        ({"bits": (2, 9)}, "9 is not a width"),
        ({"rank_by": "accuracy"}, "--rank-by accuracy: use auto, top1, loss"),
        ({"constraints": ()}, "no constraint: give at least one"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SearchConfig(**{"constraints": BUDGET, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 2.5}, "trials=2.5: must be a whole number"),
        ({"trials": "60"}, "trials='60': must be a whole number"),
        ({"seed": True}, "seed=True: must be a whole number"),
        ({"pin_ends": "no"}, "pin_ends='no': must be true or false"),
        ({"weights_only": 1}, "weights_only=1: must be true or false"),
        ({"model": None}, "model=None: must be text"),
        ({"weights": 3}, "weights=3: must be text or null"),
        ({"bits": 8}, "bits=8: must be a list, each a whole number"),
        ({"bits": (2.0, 4.0)}, "bits=(2.0, 4.0): must be a list"),
        ({"a_bits": []}, "no widths to search: give some, such as --a-bits"),
        ({"pareto": 5}, "pareto=5: must be a list, each text"),
        ({"constraints": [1]}, "constraints=[1]: must be a list, each text"),
        ({"gpus_per_trial": "1"}, "gpus_per_trial='1': must be a number"),
        ({"trial_timeout": "soon"}, "trial_timeout='soon': must be a number or null"),
        ({"agent": 5}, "agent=5: must be text"),
    ],
)
def test_types_are_checked_when_it_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SearchConfig(**{"constraints": BUDGET, **options})


def test_what_python_programs_pass_becomes_plain() -> None:
    given = SearchConfig(
        list(BUDGET), trials=np.int64(5), weights=Path("w.pt"), bits=range(8, 1, -2), gpus_per_trial=np.float32(0.5)
    )  # type: ignore[arg-type]
    assert given == SearchConfig(BUDGET, trials=5, weights="w.pt", bits=(2, 4, 6, 8), gpus_per_trial=0.5)
    assert SearchConfig.from_dict(yaml.safe_load(yaml.safe_dump(given.to_dict()))) == given


@pytest.mark.parametrize("values", [("latency", "10"), (3, 1.0), ([], 1.0), ("latency", True), ("latency", 1.0, "no")])
def test_types_of_a_constraint_are_checked(values: tuple[Any, ...]) -> None:
    with pytest.raises(ConstraintError, match="must be"):
        Constraint(*values)


@pytest.mark.parametrize("layers", [5, {}, {"fc": (8, 8)}, {3: LayerBits(8, 8)}])
def test_types_of_a_policy_are_checked(layers: Any) -> None:
    with pytest.raises(ConfigError, match="give a mapping of layer names|must be a name and LayerBits"):
        BitPolicy(layers)


def test_a_wrong_constraint_is_refused_at_once() -> None:
    with pytest.raises(ConstraintError, match="did you mean 'latency'"):
        SearchConfig(("latancy=10ms",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"constraints": BUDGET, "trails": 3}, "unknown option 'trails' (did you mean 'trials'?)"),
        ({}, "no constraint: give at least one"),
        ({"constraints": BUDGET, "batch": "many"}, "batch='many': must be a whole number"),
    ],
)
def test_a_wrong_file_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SearchConfig.from_dict(data)


def test_files_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = SearchConfig(BUDGET, model="digits-resnet", data="digits").with_absolute_paths()
    assert (named.model, named.data, named.weights) == ("digits-resnet", "digits", None)
    files = SearchConfig(BUDGET, model="net.py:make", data="npz:images", weights="net.pt").with_absolute_paths()
    assert files.model == f"{tmp_path}/net.py:make"
    assert files.data == f"npz:{tmp_path}/images"
    assert files.weights == f"{tmp_path}/net.pt"
    assert files.with_absolute_paths() == files


def test_a_file_holds_options_of_which_paths_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "model: nets/my_net.py:build\nweights: w.pt\ndata: npz:cifar10\n"
        "constraints: latency=60%\nbits: 2-4,8\ntrials: 7\n"
    )
    config = SearchConfig.load(tmp_path / "mine.yaml", {"trials": 9})
    assert config.model == f"{tmp_path}/nets/my_net.py:build"
    assert (config.weights, config.data) == (f"{tmp_path}/w.pt", f"npz:{tmp_path}/cifar10")
    assert (config.bits, config.trials, config.hardware) == ((2, 3, 4, 8), 9, "edge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails: 3\nconstraints: size=50%\n", r"mine.yaml: unknown option 'trails' \(did you mean 'trials'\?\)"),
        ("trials: many\nconstraints: size=50%\n", "mine.yaml: trials='many': must be a whole number"),
        ("trials: 3\n", "mine.yaml: no constraint: give at least one"),
        ("constraints: speed=3\n", "mine.yaml: unknown constraint 'speed'"),
        ("- 1\n", "mine.yaml: must be a mapping of options"),
        ("model: [\n", "cannot read config file"),
        ("start: 3\nconstraints: size=50%\n", "mine.yaml: start=3: must be"),
        ("agent: gready\nconstraints: size=50%\n", "mine.yaml: --agent gready"),
        ("model: !!python/object/apply:os.system [touch ran]\n", "cannot read config file"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(HaqError, match=message) as found:
        SearchConfig.load(tmp_path / "mine.yaml")
    assert "\n" not in str(found.value)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml"):
        SearchConfig.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "search").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_searches_can_be_read(path: Path) -> None:
    config = SearchConfig.load(path)
    assert config.model == "digits-resnet"
    assert SearchConfig.from_dict(config.to_dict()) == config


def test_widths_to_start_from_survive_a_file() -> None:
    config = SearchConfig(("size=50%",), start=BitPolicy.uniform(["conv1", "fc"], 4))
    assert SearchConfig.from_dict(config.to_dict()) == config
    assert "start" not in SearchConfig(("size=50%",)).to_dict(), "as in run folders of before"


def test_rules_may_be_mappings_and_lists(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "constraints: size=50%\npin: {head.*: 8/8, stem: 4}\nfloat: lstm*\n"
        "bits_of:\n  enc.*: [4, 8]\n  dec.*: 2-4/8\ntie:\n- [q_proj, k_proj]\n- fc1,fc2\n"
    )
    config = SearchConfig.load(tmp_path / "mine.yaml")
    assert (config.pin, config.float) == (("head.*=8/8", "stem=4"), ("lstm*",))
    assert (config.bits_of, config.tie) == (("enc.*=4,8", "dec.*=2-4/8"), ("q_proj,k_proj", "fc1,fc2"))
    assert SearchConfig(("size=50%",), pin={"head.*": "8/8", "stem": 4}, float=["lstm*"]).pin == config.pin  # type: ignore[arg-type]
    assert SearchConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert [rule.kind for rule in config.rules] == ["pin", "pin", "float", "bits_of", "bits_of", "tie", "tie"]
    assert SearchConfig.load(tmp_path / "mine.yaml", {"pin": ("head=2",)}).pin == ("head=2",), "as other options"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pin": "head"}, "--pin head: it gives no widths"),
        ({"pin": 3}, "pin=3: must be a list, each text"),
        ({"pin": [3]}, "pin=(3,): must be a list, each text"),
        ({"pin": {"head": None}}, "--pin head=: cannot read ''"),
        ({"pin": {"head": {"w_bits": 8}}}, "--pin head={'w_bits': 8}: cannot read"),
        ({"bits_of": {"head": [4, "x"]}}, "--bits-of head=4,x: cannot read 'x'"),
        ({"float": {"head": True}}, "float={'head': True}: must be a list, each text"),
        ({"tie": [[]]}, "--tie : a name is missing"),
    ],
)
def test_wrong_rules_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SearchConfig(BUDGET, **options)
