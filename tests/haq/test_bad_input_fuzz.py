"""Whatever bytes a parser is given, it gives a valid object or refuses them with a `HaqError`."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers import PARSERS, SEEDS, check

# What makes parsers stumble, among ordinary characters
_ODD = ["\x00", "\ufeff", "\r", "\n", "\x1b[2J", "\u202e", "\ud800", "١", "²", "NaN", "1e400", "null", "-1", "~x/"]
_ODD += ["9" * 400, "[" * 2000]
_EXAMPLES = int(os.environ.get("HAQ_FUZZ_EXAMPLES", "60"))


@st.composite
def spoiled(draw: st.DrawFn, seed: bytes) -> bytes:
    """Returns something valid with a few pieces cut out, doubled, or replaced by something odd."""
    content = seed
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 12)))
        odd = draw(st.sampled_from(_ODD)).encode("utf-8", "surrogatepass")
        piece = draw(st.one_of(st.just(b""), st.just(odd), st.binary(max_size=6), st.just(content[start:stop] * 2)))
        content = content[:start] + piece + content[stop:]
    return content


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=_EXAMPLES, deadline=5000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_are_an_object_or_a_haq_error(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name]))
    check(name, data.draw(st.one_of(spoiled(seed), st.binary(max_size=64), st.text(max_size=64).map(_encoded))))


@pytest.mark.parametrize("name", sorted(PARSERS))
def test_the_seeds_are_valid(name: str) -> None:
    """Otherwise what is fuzzed is only the first check of the parser."""
    for seed in SEEDS[name]:
        assert check(name, seed), (name, seed)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
