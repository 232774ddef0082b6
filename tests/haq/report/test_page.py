"""The page in a browser: what its script draws, and what a click or a key does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haq.hwmodels import CostTable
from haq.report import detail, render_html, summarize
from haq.runs import RunFolder
from tests.haq.browser import Browser, Page, opened
from tests.haq.report_files import add_bench, add_sensitivity

MakeRun = Callable[..., RunFolder]

DRAWN = "#layers .main-svg"
POINTS = "#scatter .scatterlayer .trace path.point"


def written(run: RunFolder) -> Path:
    run.page.write_text(render_html(summarize(run), detail(run)), encoding="utf-8")
    return run.page


def bars(page: Page) -> dict[str, list[float]]:
    found: list[dict[str, Any]] = page.evaluate(
        "document.getElementById('layers').data.map(({name, y}) => ({name, y: [...y]}))"
    )
    return {trace["name"]: trace["y"] for trace in found}


def trace(page: Page, chart: str, name: str) -> dict[str, Any]:
    code = """([chart, name]) => {
        const trace = document.getElementById(chart).data.find((trace) => trace.name === name);
        return {x: [...trace.x], y: [...trace.y], policies: trace.customdata, hover: trace.hovertext};
    }"""
    found: dict[str, Any] = page.evaluate(code, [chart, name])
    return found


def show(page: Page, chart: str) -> None:
    page.evaluate(f"document.getElementById('{chart}').scrollIntoView()")
    page.wait_for_selector(f"#{chart} .main-svg")


def test_it_draws_every_score_the_front_and_the_choice(browser: Browser, make_run: MakeRun) -> None:
    run = make_run()
    summary = summarize(run)
    with opened(browser, written(run)) as (page, complaints):
        page.wait_for_selector(DRAWN)
        page.check("input[name=view][value=all]", force=True)
        calibrated = trace(page, "scatter", "calibrated only")
        assert len(calibrated["x"]) == sum(point.level.steps == 0 for point in summary.points)
        front = trace(page, "scatter", "Pareto front")
        assert sorted(front["y"]) == sorted(point.top1 for point in summary.front)
        assert len(trace(page, "scatter", "uniform widths, calibrated only")["x"]) == 2
        assert len(trace(page, "scatter", f"chosen, trial {summary.chosen}")["x"]) == 1
        assert all("mean bits" in text for text in front["hover"])
        assert {text.split(" ·")[0] for text in front["hover"]} == {f"<b>Trial {p.number}" for p in summary.front}
        titles = page.eval_on_selector_all("#scatter .xtitle, #scatter .ytitle", "all => all.map(t => t.textContent)")
        assert sorted(titles) == ["Latency, batch of 16", "Top-1 on the validation samples"]
        assert page.locator(POINTS).count() > 60
        assert "budget 2.00 ms" in page.text_content("#scatter")
        best = run.read_best().policy.values()
        assert bars(page)["weights"] == [bits.w_bits for bits in best]
        assert bars(page)["activations"] == [bits.a_bits for bits in best]
    assert complaints == []


def test_any_cost_and_both_qualities_can_be_the_axes(browser: Browser, make_run: MakeRun) -> None:
    run = make_run()
    summary = summarize(run)
    with opened(browser, written(run)) as (page, complaints):
        page.wait_for_selector(DRAWN)
        page.focus("input[name=axis]:checked")
        page.keyboard.press("ArrowRight")
        assert page.is_checked("input[name=axis][value=energy_mj]")
        front = trace(page, "scatter", "Pareto front")
        costs = sorted(point.cost["energy_mj"] or 0.0 for point in summary.front)
        assert sorted(front["x"]) == pytest.approx(costs, rel=1e-4)
        assert page.locator("#layers .y2title").text_content() == "Share of energy"
        page.check("input[name=quality][value=loss]", force=True)
        front = trace(page, "scatter", "Pareto front")
        assert sorted(front["y"]) == pytest.approx(sorted(point.loss or 0.0 for point in summary.front), rel=1e-4)
        page.check("input[name=axis][value=size_bytes]", force=True)
        page.check("input[name=view][value=all]", force=True)
        assert len(trace(page, "scatter", "floating point")["x"]) == 1, "float has a size, though no latency"
    assert complaints == []


def test_a_click_and_a_key_fill_the_chart_of_bits(browser: Browser, make_run: MakeRun) -> None:
    run = make_run()
    trials = {trial.number: trial for trial in run.read_trials()}
    with opened(browser, written(run)) as (page, complaints):
        page.wait_for_selector(DRAWN)
        before = bars(page)
        numbers = page.evaluate("DATA.policies.number")
        page.mouse.move(5, 5)
        place = page.evaluate("""() => {
            const node = document.getElementById('scatter'), box = node.getBoundingClientRect();
            const {xaxis, yaxis} = node._fullLayout, front = node.data.find((trace) => trace.name === 'Pareto front');
            return [box.x + xaxis._offset + xaxis.d2p(front.x[0]), box.y + yaxis._offset + yaxis.d2p(front.y[0])];
        }""")
        page.mouse.move(*place)
        page.wait_for_selector("#scatter .hoverlayer .hovertext")
        page.mouse.click(*place)
        clicked = trials[numbers[int(page.input_value("#policy"))]]
        assert bars(page) != before
        assert bars(page)["weights"] == [bits.w_bits for bits in clicked.policy.values()]
        assert f"Trial {clicked.number}" in page.text_content("#picked")

        page.focus("#policy")
        page.keyboard.press("ArrowDown")
        typed = trials[numbers[int(page.input_value("#policy"))]]
        assert typed.number != clicked.number
        assert bars(page)["weights"] == [bits.w_bits for bits in typed.policy.values()]
        cells = page.eval_on_selector_all("#layer-table tbody td:nth-child(3)", "all => all.map(t => t.textContent)")
        assert cells == [str(bits.w_bits) for bits in typed.policy.values()]
    assert complaints == []


def test_a_policy_outside_the_close_up_is_shown_among_all(browser: Browser, make_run: MakeRun) -> None:
    with opened(browser, written(make_run())) as (page, complaints):
        page.wait_for_selector(DRAWN)
        assert page.is_checked("input[name=view][value=close]")
        page.select_option("#policy", label=page.text_content("#policy optgroup[label='Uniform baselines'] option"))
        assert page.is_checked("input[name=view][value=all]")
        assert set(bars(page)["weights"]) == {8}
    assert complaints == []


def test_what_binds_a_layer_is_told_by_pattern_too(browser: Browser, make_run: MakeRun) -> None:
    run = make_run()
    table = CostTable.load(run.costs)
    bound = np.zeros_like(table.metrics["latency_ms"])
    bound[:5] = 1
    replace(table, details={"memory_bound": bound}).save(run.costs)
    with opened(browser, written(run)) as (page, complaints):
        page.wait_for_selector(DRAWN)
        found = bars(page)
        assert (len(found["memory binds"]), len(found["compute binds"])) == (5, 19)
        assert sum(found["memory binds"]) + sum(found["compute binds"]) == pytest.approx(1, rel=1e-3)
        shapes = page.evaluate(
            "Object.fromEntries(document.getElementById('layers').data.map((t) => [t.name, t.marker.pattern.shape]))"
        )
        assert shapes["memory binds"] != shapes["compute binds"]
        assert shapes["weights"] != shapes["activations"]
    assert complaints == []


def test_progress_keeps_the_two_fidelities_apart(browser: Browser, make_run: MakeRun) -> None:
    run = make_run()
    trials = [trial for trial in run.read_trials() if trial.error is None]
    with opened(browser, written(run)) as (page, complaints):
        show(page, "progress")
        panels = page.evaluate("""() => {
            const lines = document.getElementById('progress').data.filter((trace) => trace.name === 'best so far');
            return lines.map(({x, y, yaxis}) => ({x: [...x], y: [...y], yaxis}));
        }""")
        assert len(panels) == 2
        for panel, steps in zip(panels, (24, 0), strict=True):
            scores = [(trial.number, s.top1) for trial in trials for s in trial.scores if s.steps == steps]
            assert panel["y"] == sorted(panel["y"])
            assert panel["y"][-1] == max(top1 for _, top1 in scores)
            assert set(zip(panel["x"][:-1], panel["y"][:-1], strict=True)) <= set(scores)
        symbols = page.evaluate(
            "[...new Set(document.getElementById('progress').data.map((t) => t.marker?.symbol))].filter(Boolean)"
        )
        assert len(symbols) == len({trial.origin for trial in trials}) == 2
        page.check("input[name=time][value=time]", force=True)
        assert page.locator("#progress .xtitle").text_content() == "Time since the start, minutes"
    assert complaints == []


def test_measurements_are_drawn(browser: Browser, make_run: MakeRun) -> None:
    run = make_run()
    add_sensitivity(run)
    add_bench(run)
    with opened(browser, written(run)) as (page, complaints):
        show(page, "sensitivity")
        heat = "document.getElementById('sensitivity').data.map((t) => [t.type, t.z.length, t.z[0].length])"
        assert page.evaluate(heat) == [["heatmap", 22, 3]] * 2
        page.check("input[name=map][value='1']", force=True)
        assert "∞" in page.evaluate("document.getElementById('sensitivity').data[0].text.flat()")
        show(page, "bench")
        assert len(trace(page, "bench", "a layer")["x"]) == 24
        assert "The whole network takes 4.00 ms, predicted were 3.00 ms (-25.0 %)" in page.text_content("main")
    assert complaints == []


def test_hostile_names_are_text_in_every_chart(browser: Browser, make_run: MakeRun) -> None:
    hostile = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    run = make_run(names=["stem", hostile])
    trial = run.read_trials()[0]
    run.append_trial(replace(trial, number=61, origin=hostile))
    add_sensitivity(run)
    add_bench(run)
    dialogs = []
    with opened(browser, written(run)) as (page, complaints):
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        for chart in ("layers", "progress", "sensitivity", "bench"):
            show(page, chart)
        assert page.locator("img").count() == 0
        assert hostile in page.text_content("#layer-table")
        assert hostile in page.text_content("#progress")
    assert (dialogs, complaints) == ([], [])


@pytest.mark.parametrize("trials", [0, 3])
def test_short_runs_have_a_page_without_errors(browser: Browser, make_run: MakeRun, trials: int) -> None:
    run = make_run(trials=trials, finished=False)
    with opened(browser, written(run)) as (page, complaints):
        page.wait_for_selector(DRAWN if trials else "h1")
    assert complaints == []


def test_a_phone_in_dark_mode_scrolls_down_only(browser: Browser, make_run: MakeRun) -> None:
    with opened(
        browser, written(make_run()), viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True
    ) as (
        page,
        complaints,
    ):
        page.wait_for_selector(DRAWN)
        show(page, "progress")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
        assert page.evaluate("getComputedStyle(document.querySelector('#scatter text')).fill") == "rgb(228, 232, 236)"
    assert complaints == []


def test_it_prints_light_and_whole(browser: Browser, make_run: MakeRun, tmp_path: Path) -> None:
    with opened(browser, written(make_run()), color_scheme="dark") as (page, complaints):
        page.wait_for_selector(DRAWN)
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        assert page.evaluate("document.getElementById('progress').clientWidth") > 0
        assert page.evaluate("document.getElementById('layers')._fullLayout.width") == 680
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator(".controls:visible").count() == 0
    assert complaints == []


def test_5000_policies_can_be_looked_at(browser: Browser, make_run: MakeRun) -> None:
    with opened(browser, written(make_run(trials=5000, layers=54, finished=False))) as (page, complaints):
        page.wait_for_selector(DRAWN)
        drawn = page.locator(POINTS).count()
        assert 200 < drawn < 6000, "points that would hide each other are left out"
        assert page.locator("#policy option").count() > 4000, "but the list has all"
        print(f"opened in {page.evaluate('performance.now()') / 1000:.1f} s", file=sys.stderr)
    assert complaints == []
