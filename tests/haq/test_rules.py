"""Rules are read from text, and find their layers."""

from __future__ import annotations

import re

import pytest

from haq.errors import ConfigError
from haq.rules import RuleKind, parse_rule

BLOCKS = [
    "stem", *(f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("q_proj", "k_proj", "v_proj", "out")),
    "blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "mlp.stem", "head",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("head", ["head"]),
        ("stem", ["stem"]),  # a whole path is that layer alone
        ("fc1", ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]),
        ("mlp.fc1", ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]),
        ("blocks.1.*.fc1", ["blocks.1.mlp.fc1"]),
        ("*.[qk]_proj", [f"blocks.{i}.attn.{name}" for i in (0, 1) for name in ("q_proj", "k_proj")]),
        ("head, stem", ["stem", "head"]),
    ],
)
def test_names_find_layers_in_the_networks_order(names: str, found: list[str]) -> None:
    assert parse_rule("float", names).layers(BLOCKS) == found


def test_names_are_tied_in_each_parent_and_globs_altogether() -> None:
    each = [tuple(f"blocks.{i}.attn.{name}" for name in ("q_proj", "k_proj", "v_proj")) for i in (0, 1)]
    assert parse_rule("tie", "v_proj,q_proj,k_proj").groups(BLOCKS) == each
    assert parse_rule("tie", "attn.q_proj,mlp.fc1").groups(BLOCKS) == [
        (f"blocks.{i}.attn.q_proj", f"blocks.{i}.mlp.fc1") for i in (0, 1)
    ]
    assert parse_rule("tie", "*.fc1").groups(BLOCKS) == [("blocks.0.mlp.fc1", "blocks.1.mlp.fc1")]
    assert parse_rule("tie", "stem,head").groups(BLOCKS) == [("stem", "head")], "not mlp.stem, which is alone"
    assert parse_rule("tie", "blocks.0.mlp.fc1,blocks.1.attn.out").groups(BLOCKS) == [
        ("blocks.1.attn.out", "blocks.0.mlp.fc1")
    ]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "float",
            "haed",
            "--float haed: no layer matches 'haed' (did you mean 'head'?); the layers are stem, blocks.0",
        ),
        ("float", "block.*", "no layer matches 'block.*' (did you mean 'blocks'?)"),
        ("float", "blocks", "no layer matches 'blocks' (did you mean 'blocks.*'?)"),
        ("float", "head,xyz", "no layer matches 'xyz'"),
        ("tie", "q_proj,kproj", "no layer matches 'kproj' (did you mean 'k_proj'?)"),
        ("tie", "q_proj", "--tie q_proj: it ties 'blocks.0.attn.q_proj' to no other layer"),
        ("tie", "q_proj,k_proj,head", "--tie q_proj,k_proj,head: it ties 'head' to no other layer"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_near_names(kind: RuleKind, text: str, message: str) -> None:
    rule = parse_rule(kind, text)
    with pytest.raises(ConfigError, match=re.escape(message)) as found:
        rule.groups(BLOCKS) if kind == "tie" else rule.layers(BLOCKS)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("pin", "head", "--pin head: it gives no widths; write a rule like head.*=8/8"),
        ("pin", "head=", "--pin head=: cannot read ''"),
        ("pin", "head=8/", "--pin head=8/: cannot read ''"),
        ("pin", "head=4,8", "--pin head=4,8: a pin is one pair of widths"),
        ("pin", "head=8/4,8", "a pin is one pair of widths"),
        ("pin", "head=9", "--pin head=9: 9 is not a width that can be searched"),
        ("pin", "=8", "--pin =8: a name is missing"),
        ("pin", "head==8", "--pin head==8: 'head=' is no name of a layer"),
        ("bits_of", "head=4,x", "--bits-of head=4,x: cannot read 'x'"),
        ("bits_of", "head=4/8/2", "--bits-of head=4/8/2: cannot read '8/2'"),
        ("float", "head,,stem", "--float head,,stem: a name is missing"),
        ("float", "", "--float : a name is missing"),
        ("float", "head=8", "--float head=8: 'head=8' is no name of a layer"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(kind: RuleKind, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_rule(kind, text)
