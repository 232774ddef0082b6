"""What is restored when a command ends."""

import random
import sys
import warnings

import numpy as np
import pytest
import torch

from haq.errors import ModelError
from haq.io.prefixes import hugging_face
from haq.process_state import process_state_restored, random_states_restored

from ..process_state import changed, process_state


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def test_a_decorated_function_may_seed() -> None:
    @random_states_restored()
    def draw() -> tuple[float, float, float]:
        seed_all()
        return random.random(), np.random.random(), float(torch.rand(1))

    before = process_state()
    assert draw() == draw()
    assert not changed(before, process_state())


def test_a_command_that_fails_leaves_the_process_as_it_was() -> None:
    with process_state_restored():
        pass  # packages that other tests silenced print again
    before = process_state()

    @process_state_restored()
    def fail() -> None:
        seed_all()
        sys.path.insert(0, "/user")
        warnings.simplefilter("ignore")
        assert len(changed(before, process_state())) == 5
        raise ModelError("of the command")

    with pytest.raises(ModelError, match="of the command"):
        fail()
    assert not changed(before, process_state())


@pytest.mark.parametrize("package", ["transformers", "datasets"])
def test_packages_print_again(package: str, tmp_path: object) -> None:
    library = pytest.importorskip(package)
    logs = library.utils.logging

    def shown() -> tuple[int, bool]:
        bars = (
            logs.is_progress_bar_enabled
            if package == "transformers"
            else lambda: not library.are_progress_bars_disabled()
        )
        return logs.get_verbosity(), bars()

    before = shown()
    with process_state_restored():
        for _ in range(2):
            with hugging_face(package, "a test", str(tmp_path), ModelError, "nothing"):
                assert shown() == (logs.ERROR, False)
    assert shown() == before
