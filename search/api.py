"""Searching from Python, with the options of the command line; models, data and the like are names or objects.

Some imports are inside the functions, because Ray's workers import this package too and do not need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haq.config import DEFAULT_WORKERS, RankByOption, SearchConfig
from haq.io.output_paths import free_folder, free_path
from haq.io.validation import check_names
from haq.policy import BitPolicy
from haq.process_state import process_state_restored
from haq.progress import Observer
from haq.runs import RunFolder
from haq.runs.relocation import Named
from haq.search.results import Result

if TYPE_CHECKING:
    from torch import nn

    from haq.data import ImageData
    from haq.hwmodels import CostTable, Hardware
    from haq.quant.schemes import Scheme
    from haq.search.agents.protocol import Agent, AgentKind
    from haq.search.agents.task import Task

__all__ = ["finetune", "pick", "resume", "resume_finetune", "run"]

Folder = RunFolder | Path | str
"""A run, or the path of its folder."""


@process_state_restored()
def run(
    model: str | nn.Module = "digits-resnet",
    data: str | ImageData | Sequence[Any] = "digits",
    hardware: str | Hardware | CostTable = "edge",
    constraints: str | Sequence[str] = (),
    *,
    weights: str | Path | None = None,
    agent: str | Agent | AgentKind | Callable[[Task], Agent] = "predictor",
    scheme: str | Scheme = "linear",
    start: BitPolicy | None = None,
    batch: int | None = None,
    bits: str | Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    a_bits: str | Sequence[int] | None = None,
    weights_only: bool = False,
    pin_ends: bool = True,
    pin: str | Sequence[str] | Mapping[str, Any] = (),
    float: str | Sequence[str] = (),
    bits_of: str | Sequence[str] | Mapping[str, Any] = (),
    tie: str | Sequence[str | Sequence[str]] = (),
    trials: int = 60,
    qat_steps: int = 24,
    finetune_steps: int = 200,
    ptq: str | Sequence[str] = ("sequential",),
    val_images: int = 1000,
    rank_by: RankByOption = "auto",
    pareto: str | Sequence[str] = (),
    workers: int = DEFAULT_WORKERS,
    address: str | None = None,
    gpus_per_trial: float = 0.0,
    trial_timeout: float | None = None,
    time_limit: str | float | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    observer: Observer | None = None,
) -> Result:
    """Searches, fine-tunes the winner, tests it, and writes a run folder, as `haq search` does.

    All options are checked before the folder is made. Ctrl-C ends the search and keeps what was found. Objects are not
    written into the run folder: give them again with `Named` to resume the run, or to export it later.

    Args:
        model: A built-in name; `hf:`, `timm:` or `torchvision:` followed by a name from there; `file.py:function`,
            which is run; or the network itself, which is not changed.
        data: `digits`, a prefix and a path such as `npz:cifar10`, or `file.py:function`, which is run; or the data
            itself: `((x_train, y_train), (x_test, y_test))` as arrays or tensors, a pair of
            `torch.utils.data.Dataset`, or `haq.data.ImageData`.
        hardware: A name that `haq hardware` lists, a `.yaml` file, a cost table, or `file.py:name`, which is run; or
            the cost model or table itself.
        constraints: Upper limits, such as `"latency=10ms"` or `["latency=60%", "size=100kB"]`.
        weights: State dict to load into the model.
        agent: The agent that proposes policies: a name in `haq.registry.AGENTS`, `file.py:name`, which is run, or
            anything that `AgentKind.of` takes.
        scheme: Quantization scheme: a name that `haq schemes` lists, `file.py:NAME`, which is run, or a scheme.
        start: Widths to score first; they are lowered if they exceed the budget.
        batch: Batch size that costs are computed for; by default the hardware's usual batch size.
        bits: Candidate widths, such as `"2-8"`.
        a_bits: Candidate widths of activations; by default those of weights.
        weights_only: Whether activations stay in floating point.
        pin_ends: Whether the first and the last layer stay at 8 bits.
        pin: Layers at given widths, such as `{"head.*": "8/8"}` or `"head.*=8/8"`; names and globs as for `haq search`.
        float: Layers that stay in floating point, such as `"lstm*"`.
        bits_of: Candidate widths of some layers, such as `{"enc.*": (4, 8)}`.
        tie: Layers that get the same widths, such as `[("q_proj", "k_proj", "v_proj")]`; a text is one tie.
        trials: Policies to score.
        qat_steps: Fine-tuning steps that a promising trial earns.
        finetune_steps: Fine-tuning steps of the finalists.
        ptq: Post-training passes of the finalists, `"auto"` or `"none"`.
        val_images: Training samples held out to score policies on.
        rank_by: What policies are ranked by.
        pareto: Metrics whose budgets are swept.
        workers: Trials at a time, by default one per core.
        address: Address of the head of a Ray cluster.
        gpus_per_trial: GPUs that each trial takes.
        trial_timeout: Seconds after which a trial counts as failed.
        time_limit: Time after which no new trial starts, in seconds or such as `"10m"`; the search can be resumed.
        seed: Seed of everything random.
        out: The run folder, which must not exist; by default `runs/MODEL-HARDWARE-CONSTRAINT`.
        observer: Receives progress; `haq.progress.ProgressBars()` draws it.

    Raises:
        HaqError: An option is wrong.

    Examples:
        ```python
        from haq.search import run

        result = run("resnet20", "npz:cifar10", "edge", ["latency=60%"], weights="resnet20.pt")
        result.best.test_top1, result.best.cost["latency_ms"]
        result.export("onnx", "net.onnx")
        ```
    """
    named = Named(model=model, data=data, hardware=hardware, agent=agent, scheme=scheme)
    options: dict[str, Any] = {
        **named.texts(),
        "constraints": constraints,
        "weights": None if weights is None else str(weights),
        "start": start,
        "batch": batch,
        "bits": bits,
        "a_bits": a_bits,
        "weights_only": weights_only,
        "pin_ends": pin_ends,
        "pin": pin,
        "float": float,
        "bits_of": bits_of,
        "tie": tie,
        "trials": trials,
        "qat_steps": qat_steps,
        "finetune_steps": finetune_steps,
        "ptq": ptq,
        "val_images": val_images,
        "rank_by": rank_by,
        "pareto": pareto,
        "workers": workers,
        "address": address,
        "gpus_per_trial": gpus_per_trial,
        "trial_timeout": trial_timeout,
        "time_limit": time_limit,
        "seed": seed,
    }
    config = SearchConfig(**options)
    folder = Path(out) if out is not None else free_folder(config.run_name)
    from haq.search import running

    return Result(running.run(config, folder, observer, named).path, named)


@process_state_restored()
def resume(path: Folder, observer: Observer | None = None, named: Named | None = None) -> Result:
    """Resumes a search that was interrupted; no finished trial is lost or run twice.

    Args:
        path: The run.
        observer: Receives progress.
        named: Where its model, weights, data or hardware are now, if they have moved; and everything that was given
            as an object.

    Raises:
        HaqError: `path` is not a run folder, or something that it names is missing or has changed.
    """
    from haq.search import running

    return Result(running.resume(_opened(path).path, observer, named).path, named)


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
        out: The new run folder; by default next to the run, named after the budget.
        finetune_steps: Fine-tuning steps of the finalists; by default as many as in the search.
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
    return Result(
        picking.pick(folder, config.constraints, place, finetune_steps, observer, named, config.ptq).path, named
    )


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
    """Trains the network of a run further; see `haq.search.finetuning.finetune`.

    Args:
        source: A search that has ended.
        epochs: Passes over the training samples.
        out: The new run folder; by default next to the run, with `-finetuned` appended to its name.
        policy: Other widths, or a file with them.
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
    return Result(finetuning.finetune(folder, place, training, widths, observer, named).path, named)


@process_state_restored()
def resume_finetune(path: Folder, observer: Observer | None = None, named: Named | None = None) -> Result:
    """Resumes a fine-tuning run that was interrupted; the final weights are the same as without the interruption.

    Args:
        path: The folder of the run.
        observer: Receives progress.
        named: As for `resume`.

    Raises:
        HaqError: `path` is not the folder of a fine-tuning run, or something that it names is missing or has changed.
    """
    from haq.search import finetuning

    return Result(finetuning.resume_finetune(_opened(path).path, observer, named).path, named)


def _opened(run: Folder) -> RunFolder:
    return run if isinstance(run, RunFolder) else RunFolder.open(Path(run))
