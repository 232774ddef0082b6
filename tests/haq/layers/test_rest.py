"""What no layer covers, in words and in files."""

import json

import pytest

from haq.errors import ConfigError
from haq.layers.rest import Left, Rest

LSTM = Left("lstm", "LSTM", 1_360_000, 5_440_000, 5_440_000, "no kind of layer covers LSTM")


def test_nothing_left_is_nothing_said() -> None:
    assert not Rest(covered=640)
    assert Rest(covered=640).said() == ""
    assert Rest(covered=640).share == 1.0


def test_most_of_the_network_cannot_be_overlooked() -> None:
    rest = Rest((LSTM,), covered=65_540)
    assert rest.mostly
    assert rest.said() == (
        "most of the network is not quantized: layers hold 4.6 % of the weights; lstm (1.36 M, 5.44 MB) stays in "
        "floating point because no kind of layer covers LSTM"
    )


def test_parts_are_grouped_by_reason_and_the_largest_named() -> None:
    norms = tuple(Left(f"norm{i}", "LayerNorm", 2 * i, 8 * i, 8 * i, "nothing covers it") for i in range(1, 6))
    said = Rest((*norms, LSTM), covered=10_000_000).said()
    assert said == (
        "layers hold 88.0 % of the weights; lstm (1.36 M, 5.44 MB) stays in floating point because no kind of layer "
        "covers LSTM; norm5 (10, 40.0 B), norm4 (8, 32.0 B) and 3 more (48.0 B) stay in floating point because nothing "
        "covers it"
    )
    assert "norm2 (4, 16.0 B) and norm1 (2, 8.00 B) stay in" in Rest(norms[:2], covered=100).said()


def test_small_parts_are_counted() -> None:
    parts = tuple(Left(f"part{i}", "Odd", 0, 0, 8 * i, f"of {i}") for i in range(1, 6))
    said = Rest(parts, covered=10_000).said()
    assert "part3 (24.0 B) stays in floating point because of 3; so do 2 smaller parts (24.0 B)" in said
    assert said.startswith("layers hold 100.0 % of the weights")  # only buffers are left
    assert Rest(parts[1:], covered=10_000).said().endswith("; so does part2 (16.0 B)")


def test_only_a_whole_network_has_all_the_weights() -> None:
    tiny = Left("norm", "LayerNorm", 2, 8, 8, "no kind covers it")
    assert "over 99.9 %" in Rest((tiny,), covered=10**9).said()


def test_what_a_layer_holds_too_is_stored_once_by_the_float_network() -> None:
    tied = Left("embedding", "Embedding", 800, 3200, 3200, "no kind covers it", shared_bytes=3200)
    rest = Rest((tied, LSTM), covered=800)
    assert rest.size_bytes == 3200 + 5_440_000
    assert rest.float_bytes == 5_440_000


def test_files_restore_it_and_refuse_others() -> None:
    rest = Rest((LSTM,), covered=3, macs=7, multiplied=5)
    assert Rest.from_dict(json.loads(json.dumps(rest.to_dict()))) == rest
    with pytest.raises(ConfigError, match="weights='many'"):
        Rest.from_dict({"parts": [{**rest.to_dict()["parts"][0], "weights": "many"}], "covered": 1})
    with pytest.raises(ConfigError, match="unknown option 'covred'"):
        Rest.from_dict({"parts": [], "covred": 1})
