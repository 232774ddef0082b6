"""What all tests share."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from haq.search.tune.cluster import ray_workers

from .haq.browser import Browser, started
from .in_turn import searching_in_turn

settings.register_profile("haq", deadline=None)  # a busy machine is no failure
settings.load_profile("haq")


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """A Ray that all searches in this process share, which saves their starts; its workers know whom not to harm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_TEST_DRIVER", str(os.getpid()))
        with ray_workers(1):
            yield


@pytest.fixture(scope="module")
def in_turn() -> Iterator[None]:
    """Searches of one file run in this process, which saves the processes of their trials."""
    with searching_in_turn():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the pages of one file: Playwright's event loop would be in the way of others."""
    with started() as browser:
        yield browser
