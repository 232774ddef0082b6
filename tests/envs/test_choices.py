"""What rules make of the layers of a network."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from haq.envs.choices import Choices, Offer, choose
from haq.errors import ConfigError
from haq.layers import LayerSpec
from haq.policy import LayerBits
from haq.rules import RuleKind, parse_rule

from .conftest import make_layers

LAYERS = [*make_layers(5), replace(make_layers(1)[0], name="fc", kind="linear")]
NAMES = [layer.name for layer in LAYERS]
PAIRS = tuple(LayerBits(w, a) for w in (2, 4, 8) for a in (4, 8))
ENDS = ("conv0", "fc")


def chosen(*rules: tuple[RuleKind, str], layers: list[LayerSpec] = LAYERS, **offer: object) -> Choices:
    given = Offer("board", PAIRS, (4, 8), **offer)  # type: ignore[arg-type]
    return choose([parse_rule(*rule) for rule in rules], layers, given)


def test_without_rules_only_the_ends_are_pinned() -> None:
    assert chosen(ends=ENDS) == Choices((), dict.fromkeys(ENDS, LayerBits(8, 8)), {}, ())


def test_a_pin_wins_over_candidates_and_both_win_over_the_ends() -> None:
    found = chosen(
        ("pin", "conv1=4/8"), ("pin", "conv2=2/4"), ("pin", "conv2=4"), ("bits_of", "conv[0-3]=8/4"),
        ("bits_of", "conv3=2,4"), ends=ENDS,
    )  # fmt: skip
    assert found.pinned == {"conv1": LayerBits(4, 8), "conv2": LayerBits(4, 4), "fc": LayerBits(8, 8)}
    assert found.candidates == {
        "conv0": (LayerBits(8, 4),), "conv3": tuple(LayerBits(w, a) for w in (2, 4) for a in (4, 8))
    }  # fmt: skip


def test_weights_alone_have_pairs_of_weights_alone() -> None:
    found = chosen(("pin", "conv1=3"), ("bits_of", "conv2=4,8"), weights_only=True)
    assert found.pinned == {"conv1": LayerBits(3, None)}
    assert found.candidates == {"conv2": (LayerBits(4, None), LayerBits(8, None))}


def test_layers_in_floating_point_are_out_of_everything() -> None:
    found = chosen(("float", "conv0,conv1"), ("tie", "conv1,conv0"), ends=ENDS, shared=(("conv1", "conv2"),))
    assert (found.floating, found.pinned, found.ties) == (("conv0", "conv1"), {"fc": LayerBits(8, 8)}, ())


def test_ties_with_a_layer_in_common_are_one() -> None:
    found = chosen(("tie", "conv1,conv2"), ("tie", "conv3,conv2"), shared=(("conv3", "fc"),))
    assert found.ties == (("conv1", "conv2", "conv3", "fc"),)


def test_a_tie_frees_an_end_and_what_hardware_ties_to_an_end_is_held_with_it() -> None:
    assert chosen(("tie", "conv0,conv1"), ends=ENDS).pinned == {"fc": LayerBits(8, 8)}
    found = chosen(ends=ENDS, shared=(("conv0", "conv2"),))
    assert (list(found.pinned), found.ties) == (["conv0", "conv2", "fc"], ())


def test_tied_layers_may_all_be_pinned_or_have_the_same_candidates() -> None:
    assert chosen(("tie", "conv1,conv2"), ("pin", "conv1,conv2=4/8")).ties == ()
    assert chosen(("tie", "conv1,conv2"), ("bits_of", "conv1,conv2=4")).ties == (("conv1", "conv2"),)


@pytest.mark.parametrize(
    ("rules", "offer", "message"),
    [
        (
            [("pin", "conv1=3/8")],
            {},
            "--pin conv1=3/8: hardware 'board' does not run layer 'conv1' so; it runs 2,4,8/4,8",
        ),
        ([("pin", "conv1=2")], {}, "--pin conv1=2: hardware 'board' does not run layer 'conv1' so"),
        ([("bits_of", "conv1=3,4")], {}, "--bits-of conv1=3,4: hardware 'board' does not run layer 'conv1' so"),
        ([("bits_of", "conv1=4/4,6")], {}, "--bits-of conv1=4/4,6: hardware 'board' does not run layer 'conv1' so"),
        ([("pin", "conv1=8/8")], {"weights_only": True}, "activations stay in floating point; give widths of weights"),
        (
            [("pin", "conv1=8"), ("float", "conv*")],
            {},
            "--pin conv1=8: layer 'conv1' stays in floating point by --float",
        ),
        ([("bits_of", "conv1=8"), ("float", "conv*")], {}, "layer 'conv1' stays in floating point by --float"),
        (
            [("tie", "conv1,fc")],
            {},
            "--tie conv1,fc: layer 'conv1' is conv and layer 'fc' is linear; tie layers of one",
        ),
        (
            [("tie", "conv1,conv2"), ("float", "conv2")],
            {},
            "layer 'conv2' stays in floating point, layer 'conv1' does not",
        ),
        (
            [("tie", "conv1,conv2"), ("pin", "conv1=8")],
            {},
            "layer 'conv1' is pinned to 8/8 and layer 'conv2' is without a",
        ),
        (
            [("tie", "conv1,conv2"), ("pin", "conv1=8"), ("bits_of", "conv2=8/8")],
            {},
            "layer 'conv1' is pinned to 8/8 and layer 'conv2' is chosen from 8/8, but they are tied",
        ),
        (
            [("pin", "conv1=8")],
            {"shared": (("conv1", "conv2"),)},
            "but hardware 'board' needs the same widths for layers that read one tensor; give both the same --pin",
        ),
        ([("float", "*")], {}, "every layer is pinned or stays in floating point, so nothing is left to search"),
        ([("float", "conv*"), ("pin", "fc=8")], {}, "nothing is left to search"),
    ],
)
def test_contradictions_are_refused_in_one_line(
    rules: list[tuple[RuleKind, str]], offer: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as found:
        chosen(*rules, **offer)
    assert "\n" not in str(found.value)


def test_a_table_has_one_width_of_activations_for_each_of_weights() -> None:
    table = LayerSpec("emb", "embedding", 9, 4, (1, 1), (1, 1), (0, 0), (1, 1), 1, (3, 1), (3, 1), 0, 36, 0)
    layers = [table, *LAYERS]
    pairs = tuple(LayerBits(w, a) for w in (2, 4, 8) for a in (4, 8))
    offer = Offer("board", pairs, (4, 8))
    found = choose((), layers, offer).with_lookups(layers, offer, (2, 4))
    assert dict(found.candidates) == {"emb": (LayerBits(2, 8), LayerBits(4, 8))}
    pinned = choose((parse_rule("pin", "emb=4/4"),), layers, offer).with_lookups(layers, offer, (2, 4))
    assert pinned.pinned["emb"] == LayerBits(4, 4)
    assert not pinned.candidates
