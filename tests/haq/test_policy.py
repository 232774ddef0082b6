from __future__ import annotations

import copy
import json
import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from haq.errors import ConfigError
from haq.policy import WIDTHS, BitPolicy, LayerBits

widths = st.sampled_from([*WIDTHS, None])
names = st.one_of(
    st.sampled_from(["0", "1e3", "null", "on", "scheme", "layers", "~", "- x", "features.0.conv", ""]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
policies = st.builds(
    BitPolicy,
    st.dictionaries(names, st.builds(LayerBits, widths, widths), min_size=1, max_size=6),
    st.sampled_from(["linear", "pact", "kmeans"]),
)


@given(policies)
def test_json_and_yaml_round_trips_are_exact(policy: BitPolicy) -> None:
    data = policy.to_dict()
    for copied in (json.loads(json.dumps(data)), yaml.safe_load(yaml.safe_dump(data, sort_keys=False))):
        restored = BitPolicy.from_dict(copied)
        assert restored == policy
        assert list(restored) == list(policy)
        assert restored.to_dict() == data


@given(policies)
def test_bare_widths_round_trip_but_for_the_scheme(policy: BitPolicy) -> None:
    restored = BitPolicy.from_dict(json.loads(json.dumps(policy.widths())))
    assert restored == BitPolicy(policy.layers)


@given(policies)
def test_equal_policies_hash_alike_and_survive_copies(policy: BitPolicy) -> None:
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert twin == policy
        assert hash(twin) == hash(policy)
        assert len({twin, policy}) == 1


@given(policies, policies)
def test_equality_is_that_of_what_is_written(a: BitPolicy, b: BitPolicy) -> None:
    assert (a == b) == (json.dumps(a.to_dict()) == json.dumps(b.to_dict()))


def test_widths_order_and_scheme_all_count() -> None:
    a, b = LayerBits(4, 4), LayerBits(8, 8)
    policy = BitPolicy({"x": a, "y": b})
    assert policy != BitPolicy({"x": b, "y": b})
    assert policy != BitPolicy({"y": b, "x": a})
    assert policy != BitPolicy({"x": a, "y": b}, scheme="pact")
    assert policy != {"x": a, "y": b}


def test_a_policy_does_not_change_with_what_it_was_made_of() -> None:
    layers = {"x": LayerBits(4, 4)}
    policy = BitPolicy(layers)
    layers["y"] = LayerBits(8, 8)
    assert list(policy) == ["x"]
    with pytest.raises(AttributeError):
        policy.scheme = "pact"  # type: ignore[misc]


def test_uniform_keeps_pinned_layers() -> None:
    policy = BitPolicy.uniform(["a", "b"], 4, {"a": LayerBits(8, 8)})
    assert policy == BitPolicy({"a": LayerBits(8, 8), "b": LayerBits(4, 4)})


@pytest.mark.parametrize("width", [0, -1, 9, 15, 17, 32, True, 4.0, "4"])
def test_other_widths_are_refused(width: object) -> None:
    with pytest.raises(ConfigError, match=r"a_bits=.*1 to 8, 16, or null"):
        LayerBits(8, width)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "mapping of layer names"),
        ([], "mapping of layer names"),
        ({}, "mapping of layer names"),
        ({"scheme": "linear", "layers": []}, "policy.layers must be a mapping, but got list"),
        ({"scheme": "linear", "layers": {}}, "at least one layer"),
        ({"conv": 4}, "'conv' must hold exactly w_bits and a_bits"),
        ({"conv": {"w_bits": 4}}, "'conv' must hold exactly w_bits and a_bits"),
        ({"conv": {"w_bits": 4, "a_bits": 4, "bits": 4}}, "'conv' must hold exactly"),
        ({"conv": {"w_bits": 9, "a_bits": 4}}, "w_bits=9"),
    ],
)
def test_what_is_not_a_policy_is_refused(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitPolicy.from_dict(data)
