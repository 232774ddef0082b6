from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from haq.report import Summary, render_html, summarize
from haq.report.figures import layers_figure, scatter_figure
from haq.report.summary import LayerWidths
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


def own(page: str) -> str:
    """The page without the library, which is half of the tests' time to search."""
    return page.replace(get_plotlyjs(), "")


def traces(figure: Any) -> dict[str, dict[str, Any]]:
    return {trace.get("name", ""): trace for trace in json.loads(figure.to_json())["data"]}


@pytest.fixture
def summary(make_run: MakeRun) -> Summary:
    return summarize(make_run())


def test_the_page_is_whole_and_asks_for_nothing(summary: Summary) -> None:
    page = render_html(summary)
    assert len(page.encode()) < 6_000_000
    assert get_plotlyjs() in page
    assert "default-src 'none'" in page
    parsed = Page(own(page))
    assert parsed.links == []
    assert not {"link", "iframe", "img", "object"} & set(parsed.tags)
    assert not re.search(r"https?://|@import|url\(", own(page))


def test_the_same_run_gives_the_same_page(summary: Summary) -> None:
    assert render_html(summary) == render_html(summary)


def test_it_says_what_the_terminal_says(summary: Summary) -> None:
    text = " ".join(Page(own(render_html(summary))).text.split())
    for words in (
        "Beats the uniform 4-bit network at equal budget by +1.8 points (93.1 % against 91.3 % test top-1).",
        "3 × OutOfMemoryError: no memory left",
        "Test top-1: on the test samples, which were used once, at the end.",
        "Val. top-1: on the validation samples, before any fine-tuning, in every row.",
        "mixed precision (haq)",
    ):
        assert words in text


def test_every_scored_policy_is_drawn_with_its_trial(summary: Summary) -> None:
    drawn = traces(scatter_figure(summary, "top1"))
    assert set(drawn["calibrated only"]["customdata"]) == {p.number for p in summary.points if p.level.steps == 0}
    assert drawn["Pareto front"]["customdata"] == [point.number for point in summary.front]
    assert drawn[f"chosen, trial {summary.chosen}"]["y"] == [
        point.top1 for point in summary.front if point.number == summary.chosen
    ]
    assert len(drawn["uniform widths, calibrated only"]["x"]) == 2
    hover = drawn["Pareto front"]["hovertext"][0]
    assert f"trial {summary.front[0].number}" in hover
    assert "validation top-1" in hover
    assert "mean bits" in hover


def test_axes_and_budget_are_labelled(summary: Summary) -> None:
    layout = json.loads(scatter_figure(summary, "top1").to_json())["layout"]
    assert layout["yaxis"]["title"]["text"] == "Top-1 on the validation samples"
    assert layout["xaxis"]["title"]["text"] == "Latency, batch of 16"
    assert layout["shapes"][0]["x0"] == summary.limits["latency_ms"]
    assert layout["annotations"][0]["text"] == "budget 2.00 ms"


def test_the_line_of_the_front_climbs(summary: Summary) -> None:
    line = traces(scatter_figure(summary, "top1"))[""]
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(set(line["y"]))


def test_loss_is_drawn_too_when_the_search_ranked_by_it(summary: Summary) -> None:
    page = own(render_html(replace(summary, ranked_by_loss=True)))
    assert "Loss on the validation samples" in page
    assert "Top-1 on the validation samples" in page
    assert "Loss on the validation samples" not in own(render_html(summary))


@pytest.mark.parametrize("axis", ["energy_mj", "size_bytes", "bops"])
def test_any_metric_can_be_the_axis(summary: Summary, axis: str) -> None:
    drawn = traces(scatter_figure(replace(summary, axis=axis, limits={axis: 1.0}), "top1"))
    assert drawn["Pareto front"]["x"] == [point.cost[axis] for point in summary.front]


def test_bars_are_the_widths(summary: Summary) -> None:
    bars = traces(layers_figure(summary))
    assert bars["weights"]["y"] == [layer.w_bits for layer in summary.layers]
    assert bars["activations"]["y"] == [layer.a_bits for layer in summary.layers]
    assert bars[""]["y"] == pytest.approx([layer.latency_share for layer in summary.layers])


def test_float_layers_stand_out_and_shares_may_be_unknown(summary: Summary) -> None:
    bars = traces(layers_figure(replace(summary, layers=(LayerWidths("conv", None, 4, None),))))
    assert set(bars) == {"weights", "activations"}
    assert bars["weights"]["y"] == [32]
    assert bars["weights"]["hovertext"] == ["conv<br>weights: float"]


HOSTILE = "<script>alert(1)</script>"


def test_what_the_user_named_is_text_everywhere(make_run: MakeRun) -> None:
    run = make_run(names=[HOSTILE, "</script><img src=x>", '"onload="x', "<b>&amp;"], name="a&<i>b")
    run.write_config(replace(run.read_config(), model=HOSTILE, data="{x}<u>"), {})
    trial = run.read_trials()[0]
    run.append_trial(replace(trial, number=61, scores=(), origin=HOSTILE, error=HOSTILE))
    run.append_trial(replace(trial, number=62, origin=HOSTILE))
    plain = Page(own(render_html(summarize(make_run()))))
    page = own(render_html(summarize(run)))
    parsed = Page(page)
    assert HOSTILE not in page
    assert "<img" not in page
    assert {tag: parsed.tags.count(tag) for tag in ("script", "img", "b", "i", "u")} == {
        tag: plain.tags.count(tag) for tag in ("script", "img", "b", "i", "u")
    }
    assert parsed.links == []
    for name in (HOSTILE, "a&<i>b", "{x}<u>", '"onload="x'):
        assert name in parsed.text


def test_names_in_charts_are_escaped_for_plotly(make_run: MakeRun) -> None:
    figure = layers_figure(summarize(make_run(names=["<b>&'\"", "1e5"])))
    ticks = figure.layout.xaxis2.ticktext
    assert ticks[:2] == ("&lt;b&gt;&amp;'\"", "1e5")


def test_long_names_are_shortened_under_the_bars_only(make_run: MakeRun) -> None:
    name = "features." * 8 + "conv"
    summary = summarize(make_run(names=[name]))
    figure = layers_figure(summary)
    assert len(figure.layout.xaxis2.ticktext[0]) == 24
    assert name in figure.data[0].hovertext[0]


def test_interrupted_and_empty_runs_have_a_page(make_run: MakeRun) -> None:
    half = own(render_html(summarize(make_run("half", trials=30, finished=False))))
    assert "The search has not ended" in half
    empty = own(render_html(summarize(make_run("empty", trials=0, finished=False))))
    assert "No trial has been scored yet." in empty
