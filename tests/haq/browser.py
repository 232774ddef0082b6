"""A headless Chromium, for the tests of pages: `$CHROMIUM`, or the system's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "Page", "opened", "started"]

Browser = Any
Page = Any
"""Both of Playwright."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def _chromium() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: install one, or name it in $CHROMIUM")
    return found


@contextmanager
def started() -> Iterator[Browser]:
    """Starts Chromium, which takes seconds; each page has a context of its own, as if it were opened alone."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install haq[dev]")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox needs rights that containers and root do not have; the page is our own
        browser = driver.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, path: Path, **options: Any) -> Iterator[tuple[Page, list[str]]]:
    """Opens a file; yields the page, and a list of what goes wrong in it.

    Args:
        browser: See `started`.
        path: HTML.
        options: Of a Playwright context, such as `viewport`.
    """
    context = browser.new_context(**{"viewport": {"width": 1160, "height": 900}, **options})
    try:
        page = context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto(path.resolve().as_uri())
        yield page, complaints
    finally:
        context.close()
