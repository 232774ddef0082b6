"""Searching from Python: the same options as on the command line.

Ray's workers import this package, too, and need none of what the functions here import when they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from haq.config import SearchConfig
from haq.io.output_paths import free_folder, free_path
from haq.io.validation import check_names
from haq.policy import BitPolicy
from haq.process_state import process_state_restored
from haq.runs import RunFolder
from haq.runs.relocation import Named
from haq.search.observer import Observer
from haq.search.results import Result

__all__ = ["finetune", "pick", "resume", "resume_finetune", "run"]

Folder = RunFolder | Path | str
"""A run, or where it is."""


@process_state_restored()
def run(
    constraints: SearchConfig | str | Sequence[str] = (),
    out: Path | str | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Result:
    """Searches, fine-tunes the winner, tests it, and writes a run folder, as `haq search` does.

    Everything in the options is checked before the folder is made. Ctrl-C ends the search with what was found.

    Args:
        constraints: Such as `["latency=10ms", "size=60%"]`; or all options as one object.
        out: The run folder, which must not exist; by default `runs/MODEL-HARDWARE-CONSTRAINT`.
        observer: Receives progress; `haq.cli.terminal.TerminalObserver()` draws it.
        options: Fields of `SearchConfig`, such as `model="my_net.py:build"`, `trials=100` or `bits="2-8"`.

    Raises:
        HaqError: Anything wrong with the options.

    Examples:
        ```python
        from haq.search import run

        result = run(["latency=60%"], model="resnet20", weights="resnet20.pt", data="npz:cifar10")
        result.best.test_top1, result.best.cost["latency_ms"]
        result.export("onnx", "net.onnx")
        ```
    """
    from haq.search import running

    check_names(SearchConfig, options)
    if isinstance(constraints, SearchConfig):
        config = replace(constraints, **options)
    else:
        config = SearchConfig(constraints, **options)  # type: ignore[arg-type]  # it reads text as well
    folder = Path(out) if out is not None else free_folder(config.run_name)
    return Result(running.run(config, folder, observer).path)


@process_state_restored()
def resume(path: Folder, observer: Observer | None = None, named: Named | None = None) -> Result:
    """Goes on with a search that was interrupted; no finished trial is lost or run twice.

    Args:
        path: The run.
        observer: Receives progress.
        named: Where its model, weights, data or hardware are now, if not where they were.

    Raises:
        HaqError: `path` is not a run folder, or what it names is no longer there or has changed.
    """
    from haq.search import running

    return Result(running.resume(_opened(path).path, observer, named).path)


@process_state_restored()
def pick(
    source: Folder,
    constraints: str | Sequence[str],
    out: Path | str | None = None,
    finetune_steps: int | None = None,
    observer: Observer | None = None,
    named: Named | None = None,
    ptq: str | Sequence[str] | None = None,
) -> Result:
    """Takes another point of a run's archive without another search; see `haq.search.picking.pick`.

    Args:
        source: A run with trials.
        constraints: The new budget.
        out: The new run folder; by default beside the run, named for the budget.
        finetune_steps: Of the finalists; by default as many as in the search.
        observer: Receives progress.
        named: As for `resume`.
        ptq: Post-training passes of the finalists, such as `"auto"`; by default as in the search.

    Raises:
        HaqError: No policy of the run meets the budget.
    """
    from haq.search import picking

    folder = _opened(source)
    config = picking.picked(folder, constraints, finetune_steps, named, ptq)
    place = Path(out) if out is not None else free_folder(config.run_name, folder.path.parent)
    return Result(picking.pick(folder, config.constraints, place, finetune_steps, observer, named, config.ptq).path)


@process_state_restored()
def finetune(
    source: Folder,
    epochs: int,
    out: Path | str | None = None,
    policy: BitPolicy | Path | str | None = None,
    observer: Observer | None = None,
    named: Named | None = None,
    **options: Any,
) -> Result:
    """Trains the network of a run on; see `haq.search.finetuning.finetune`.

    Args:
        source: A search that has ended.
        epochs: Passes over the training samples.
        out: The new run folder; by default beside the run, with `-finetuned` behind its name.
        policy: Other widths, or the file that holds them.
        observer: Receives progress.
        named: As for `resume`.
        options: Other fields of `haq.search.finetuning.Training`, such as `lr=5e-4` or `distill=False`.

    Raises:
        HaqError: The run has no result, or the policy does not fit it.
    """
    from haq.search import finetuning

    folder = _opened(source)
    check_names(finetuning.Training, options)
    training = finetuning.Training(epochs, **options)
    widths = BitPolicy.load(Path(policy)) if isinstance(policy, Path | str) else policy
    place = Path(out) if out is not None else free_path(folder.path.with_name(folder.path.name + "-finetuned"))
    return Result(finetuning.finetune(folder, place, training, widths, observer, named).path)


@process_state_restored()
def resume_finetune(path: Folder, observer: Observer | None = None, named: Named | None = None) -> Result:
    """Goes on with a fine-tuning that was interrupted; it ends with the weights of one that never was.

    Args:
        path: Its folder.
        observer: Receives progress.
        named: As for `resume`.

    Raises:
        HaqError: `path` is not the folder of a fine-tuning, or what it names is no longer there or has changed.
    """
    from haq.search import finetuning

    return Result(finetuning.resume_finetune(_opened(path).path, observer, named).path)


def _opened(run: Folder) -> RunFolder:
    return run if isinstance(run, RunFolder) else RunFolder.open(Path(run))
