from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from haq.layers.rest import Left, Rest
from haq.report import detail, render, summarize, write_report
from haq.report.summary import LayerWidths, Summary
from haq.runs import RunFolder
from tests.haq.report_files import add_bench

MakeRun = Callable[..., RunFolder]


def text_of(summary: Summary, width: int = 80) -> str:
    file = io.StringIO()
    render(summary, Console(file=file, width=width))
    return file.getvalue()


def test_80_columns_hold_every_table_without_colour(make_run: MakeRun) -> None:
    text = text_of(summarize(make_run()))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    for line in (
        "  float                        94.8 %   95.2 %         –         –   1.40 MB",
        "  uniform 4-bit, same budget   91.3 %",
        "> mixed precision (haq)        93.1 %",
    ):
        assert line in text
    assert "Beats the uniform 4-bit network at equal budget by +1.8 points" in text


def test_validation_and_test_are_told_apart(make_run: MakeRun) -> None:
    text = " ".join(text_of(summarize(make_run())).split())
    assert "Test top-1: on the test samples, which were used once, at the end." in text
    assert "Val. top-1: on the validation samples, before any fine-tuning, in every row." in text
    assert "Of the policies fine-tuned for 24 steps, those that no other beats in all of validation top-1" in text


def test_the_chosen_policy_is_marked_in_the_front(make_run: MakeRun) -> None:
    summary = summarize(make_run())
    assert f"> {summary.chosen} " in text_of(summary)


def test_each_layer_has_its_bits_as_number_and_bar(make_run: MakeRun) -> None:
    summary = summarize(make_run())
    lines = text_of(summary).splitlines()
    layer = summary.layers[3]
    line = next(line for line in lines if layer.name in line)
    cells = line.split()
    assert cells[2:6] == [str(layer.w_bits), "█" * (layer.w_bits or 0), str(layer.a_bits), "█" * (layer.a_bits or 0)]
    assert line.endswith(" %")


def test_float_layers_are_named_so(make_run: MakeRun) -> None:
    summary = replace(summarize(make_run()), layers=(LayerWidths("conv", None, 16, None),))
    line = next(line for line in text_of(summary).splitlines() if " conv " in line)
    assert line.split() == ["1", "conv", "float", "16", "████████"]


@pytest.mark.parametrize(("layers", "bars"), [(60, True), (61, False), (150, False)])
def test_long_networks_keep_all_rows_but_no_bars(make_run: MakeRun, layers: int, bars: bool) -> None:
    summary = summarize(make_run(layers=layers, trials=6, finished=False))
    text = text_of(summary)
    assert all(layer.name in text for layer in summary.layers)
    assert ("█" in text) == bars


def test_names_are_shown_and_not_obeyed(make_run: MakeRun) -> None:
    text = text_of(summarize(make_run(names=["[red]a[/red]", "b\x1b[2J", "c" * 200])))
    assert "[red]a[/red]" in text
    assert "b\\x1b[2J" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_interrupted_run_is_shown(make_run: MakeRun) -> None:
    text = " ".join(text_of(summarize(make_run(trials=30, finished=False))).split())
    assert "The search has not ended; its best policy so far is that of trial" in text
    assert "mixed precision, so far" in text
    assert "No trial has been scored yet." in text_of(summarize(make_run("empty", trials=0, finished=False)))


def test_the_report_is_printed_and_written(make_run: MakeRun) -> None:
    run, file = make_run(), io.StringIO()
    write_report(run, Console(file=file, width=80))
    assert file.getvalue().rstrip().endswith(str(run.page))
    assert run.page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_essentials_of_the_page_are_printed(make_run: MakeRun) -> None:
    run = make_run()
    add_bench(run)
    file = io.StringIO()
    render(summarize(run), Console(file=file, width=80), detail(run))
    assert [line[:11] for line in file.getvalue().splitlines() if len(line) > 80] == ["haq search "]
    text = " ".join(file.getvalue().split())
    for words in (
        "trials were fine-tuned for 24 steps; the best of them,",
        "The whole network takes 4.00 ms, predicted were 3.00 ms (-25.0 %)",
        "haq search --constraint latency=",
        "haq 0.1.0",
    ):
        assert words in text


def test_what_no_layer_covers_is_said(make_run: MakeRun) -> None:
    run = make_run()
    summary = summarize(run)
    assert "of the weights" not in text_of(summary)
    part = Left("lstm", "LSTM", 1_360_000, 5_440_000, 5_440_000, "no kind of layer covers LSTM")
    run.write_rest(Rest((part,), covered=65_540))
    text = " ".join(text_of(summarize(run)).split())
    assert "Most of the network is not quantized: layers hold 4.6 % of the weights; lstm (1.36 M, 5.44 MB)" in text
