from __future__ import annotations

import pytest

from haq import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_is_one_that_a_user_can_fix(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.HaqError)


def test_a_close_name_is_suggested() -> None:
    assert errors.did_you_mean("latancy", ["latency", "energy"]) == " (did you mean 'latency'?)"


def test_nothing_is_suggested_when_nothing_is_close() -> None:
    assert errors.did_you_mean("colour", ["latency", "energy"]) == ""
    assert errors.did_you_mean("x", []) == ""
