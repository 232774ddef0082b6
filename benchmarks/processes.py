"""Which processes belong to a search."""

from __future__ import annotations

import contextlib

import psutil

__all__ = ["trial_workers"]


def trial_workers(driver: psutil.Process) -> list[psutil.Process]:
    """Returns the workers that run trials; Ray writes what an actor is, or does, in the place of its command."""
    found = []
    for child in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # ended since
            if any(word in " ".join(child.cmdline()) for word in ("ray::QuantizationTrial", "ray::ResourceTrainable")):
                found.append(child)
    return found
