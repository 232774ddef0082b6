"""Examples in docstrings give what they show."""

import doctest
from importlib import import_module

import pytest

from .test_architecture import sources


@pytest.mark.parametrize("name", [name for name, path in sources() if ">>> " in path.read_text()])
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name.removesuffix(".__init__")))
    assert failed == 0
    assert tried
