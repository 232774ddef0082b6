"""The site is built without a warning, opens from a file, and asks nothing of any network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from haq.cli.main import cli

from ..haq.browser import Browser, opened
from .documents import ROOT, pages

pytest.importorskip("mkdocs", reason="pip install haq[dev]")

WIDE = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    options = ["-f", str(ROOT / ".ci" / "mkdocs.yml"), "-d", str(folder)]
    built = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


def test_every_page_is_built_and_none_has_a_formula_left(site: Path) -> None:
    for page in pages()[1:]:
        html = (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text(encoding="utf-8")
        assert "arithmatex" not in html, page
    assert "<math" in (site / "how-it-works.html").read_text(encoding="utf-8")


def test_every_command_has_its_help(site: Path) -> None:
    html = (site / "cli.html").read_text(encoding="utf-8")
    assert [name for name in cli.commands if f'<h2 id="{name}"' not in html] == []


def test_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize("page", ["index", "how-it-works", "api/search"])
def test_a_page_opens_offline(browser: Browser, site: Path, page: str) -> None:
    with opened(browser, site / f"{page}.html", viewport=WIDE) as (shown, complaints):
        shown.wait_for_selector("h1")
        assert shown.evaluate("document.documentElement.scrollWidth") <= WIDE["width"]
        assert shown.locator("nav.md-nav").count() > 0
    assert complaints == []


def test_the_search_of_the_site_finds_a_page(browser: Browser, site: Path) -> None:
    with opened(browser, site / "index.html", viewport=WIDE) as (shown, complaints):
        shown.locator("input.md-search__input").click()
        shown.keyboard.type("sequential decrease")
        shown.wait_for_selector(".md-search-result__item a")
        found = shown.eval_on_selector_all(".md-search-result__item a", "all => all.map((link) => link.href)")
        assert any("how-it-works" in address for address in found)
    assert complaints == []
