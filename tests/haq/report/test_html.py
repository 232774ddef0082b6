from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from haq.layers.rest import Left, Rest
from haq.report import detail, render_html, summarize
from haq.runs import RunFolder

MakeRun = Callable[..., RunFolder]


class Page(HTMLParser):
    """Collects tags, their attributes and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += data


def page_of(run: RunFolder) -> str:
    return render_html(summarize(run), detail(run))


def own(page: str) -> str:
    """The page without the library, which is half of the tests' time to search."""
    return page.replace(get_plotlyjs(), "")


@pytest.fixture
def page(make_run: MakeRun) -> str:
    return page_of(make_run())


def test_the_page_is_whole_and_asks_for_nothing(page: str) -> None:
    assert len(page.encode()) < 6_000_000
    assert get_plotlyjs() in page
    assert "default-src 'none'" in page
    parsed = Page(own(page))
    assert parsed.links == []
    assert not {"link", "iframe", "img", "object"} & set(parsed.tags)
    assert not re.search(r"https?://|@import|url\(", own(page))


def test_the_same_run_gives_the_same_page(make_run: MakeRun) -> None:
    run = make_run()
    assert page_of(run) == page_of(run)


def test_it_says_what_the_terminal_says(page: str) -> None:
    text = " ".join(Page(own(page)).text.split())
    for words in (
        "Beats the uniform 4-bit network at equal budget by +1.8 points (93.1 % against 91.3 % test top-1).",
        "3 × OutOfMemoryError: no memory left",
        "Test top-1: on the test samples, which were used once, at the end.",
        "Val. top-1: on the validation samples, before any fine-tuning, in every row.",
        "mixed precision (haq)",
        "haq search --constraint latency=",
        "trials were fine-tuned for 24 steps; the best of them, ",
    ):
        assert words in text


def test_5000_policies_stay_under_6_mb(make_run: MakeRun) -> None:
    page = page_of(make_run(trials=5000, layers=54, finished=False))
    assert len(page.encode()) < 6_000_000


HOSTILE = "<script>alert(1)</script>"


def test_what_the_user_named_is_text_everywhere(make_run: MakeRun) -> None:
    run = make_run(names=[HOSTILE, "</script><img src=x>", '"onload="x', "<b>&amp;", "<!--<script>"], name="a&<i>b")
    run.write_config(replace(run.read_config(), model=HOSTILE, data="{x}<u>"), {"haq": HOSTILE})
    trial = run.read_trials()[0]
    run.append_trial(replace(trial, number=61, scores=(), origin=HOSTILE, error=HOSTILE))
    run.append_trial(replace(trial, number=62, origin=HOSTILE))
    plain = Page(own(page_of(make_run())))
    page = own(page_of(run))
    parsed = Page(page)
    assert HOSTILE not in page
    assert "<img" not in page
    assert "<!--" not in page
    assert {tag: parsed.tags.count(tag) for tag in ("script", "img", "b", "i", "u")} == {
        tag: plain.tags.count(tag) for tag in ("script", "img", "b", "i", "u")
    }
    assert parsed.links == []
    for name in (HOSTILE, "a&<i>b", "{x}<u>", '"onload="x'):
        assert name in parsed.text


def test_interrupted_and_empty_runs_have_a_page(make_run: MakeRun) -> None:
    half = own(page_of(make_run("half", trials=30, finished=False)))
    assert "The search has not ended" in half
    empty = own(page_of(make_run("empty", trials=0, finished=False)))
    assert "No trial has been scored yet." in empty


@pytest.mark.parametrize(("covered", "kind"), [(1, "warning"), (10**9, "note")])
def test_what_no_layer_covers_stands_at_the_head(make_run: MakeRun, covered: int, kind: str) -> None:
    run = make_run()
    run.write_rest(Rest((Left("<lstm>", "LSTM", 500, 2000, 2000, "no kind of layer covers LSTM"),), covered=covered))
    page = page_of(run)
    assert f'<p class="{kind}">' in page.split("<section>")[0]
    assert "&lt;lstm&gt; (500, 2.00 kB) stays in floating point" in page
    assert "<lstm>" not in page
