"""What the documentation site needs beside its pages; MkDocs calls these functions.

Nothing is fetched: formulas become MathML here, and the API reference reads the sources without importing them.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

import click
from latex2mathml.converter import convert

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = _ROOT / "build" / "api" / "haq"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_SHIM = "https://unpkg.com/iframe-worker/shim"
_FIGURES = "../benchmarks/README.md"


def on_startup(**_: Any) -> None:
    """Lays the sources out as they are installed, because `haq.search` and others stand at the top level."""
    shutil.rmtree(_SOURCES, ignore_errors=True)
    folders = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in {"haq": "haq", **folders}.items():
        target = _SOURCES.joinpath(*package.split(".")[1:])
        shutil.copytree(_ROOT / folder, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adds the figures of `benchmarks/README.md` and the help of every command to the pages that are about them."""
    if page.file.src_uri == "cli.md":
        return markdown + _help()
    if _FIGURES not in markdown:
        return markdown
    figures = (_ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    before, _, after = markdown.partition(f"[benchmarks/README.md]({_FIGURES})")
    return before + "`benchmarks/README.md`" + after + "\n" + figures.partition("\n")[2]


def _help() -> str:
    from haq.cli.main import cli

    parts = []
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=f"haq {name}", max_content_width=100, terminal_width=100)
        parts.append(f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "".join(parts)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Takes our stand-in for workers, which the theme would fetch for a site that is opened from files."""
    return output.replace(_SHIM, page.url.count("/") * "../" + "assets/worker.js")


def on_post_build(config: Any) -> None:
    """Puts the stand-in beside the theme's scripts."""
    shutil.copy(_ROOT / ".ci" / "worker.js", Path(config.site_dir) / "assets" / "worker.js")


def on_page_content(html: str, **_: Any) -> str:
    """Turns formulas from LaTeX into MathML, which browsers draw themselves."""
    return _FORMULA.sub(
        lambda found: convert(unescape(found[3]).strip(), display="block" if found[2] == "[" else "inline"), html
    )
