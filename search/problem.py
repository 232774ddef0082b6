"""Everything that is known before the first trial: network, data, costs, budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from haq.config import SearchConfig
from haq.constraints import METRICS, Constraint
from haq.data import ImageData
from haq.envs import Budget
from haq.errors import ConfigError, ConstraintError, ModelError
from haq.hwmodels import CostTable, get_hardware
from haq.hwmodels.hardware import listed_pairs
from haq.hwmodels.pricing import Prices, default_batch, is_table, limits_of, price
from haq.hwmodels.tables.memory import MemoryPlan
from haq.layers import LayerSpec, ends
from haq.policy import LayerBits
from haq.quant.ptq import check_applicable
from haq.quant.reach import reached
from haq.quant.schemes import Scheme, get_scheme
from haq.runs import Identity, RunFolder
from haq.runs.project import open_project
from haq.search.observer import Observer
from haq.search.resume_checks import rounding

__all__ = ["Problem", "pinned_ends", "pose"]


@dataclass(frozen=True)
class Problem:
    """What is to be solved.

    Attributes:
        config: What was asked for, with absolute paths and a batch.
        model: The float network, in evaluation mode, proven to be reached by quantizers.
        data: Training, validation and test images.
        sample: One training image, `(1, C, H, W)`.
        layers: In the order of their first call.
        table: Prices every layer at every width that may occur.
        budget: Candidate widths, pinned layers and limits.
        identity: Fingerprints of the network, the data and all else that scores depend on.
    """

    config: SearchConfig
    model: nn.Module
    data: ImageData
    sample: Tensor
    layers: list[LayerSpec]
    table: CostTable
    budget: Budget
    identity: Identity


def pinned_ends(layers: list[LayerSpec]) -> dict[str, LayerBits]:
    """Holds the first and the last layer at 8 bits, as HAQ does; a network of one or two layers is left free."""
    return dict.fromkeys(ends(layers), LayerBits(8, 8))


def pose(config: SearchConfig, observer: Observer, run: RunFolder | None = None) -> Problem:
    """Loads, traces and prices; raises a `HaqError` for anything wrong with the options, and writes nothing.

    Args:
        config: Options.
        observer: Receives progress.
        run: A search that is resumed or used: its prices and limits hold, even where the hardware's file has changed,
            and what it does not belong to is refused.

    Raises:
        ConfigError: No width is supported by the hardware, or the run was searched with other options.
        ConstraintError: No policy meets the constraints.
        DataError: The data cannot be used with the model.
        HardwareError: The hardware is unknown or its description is wrong.
        ModelError: The model or its weights are wrong.
    """
    config = config.with_absolute_paths()
    batch = config.batch or default_batch(config.hardware)  # a wrong name is known before the data is read
    config = replace(config, batch=batch)
    scheme = _scheme(config, observer)
    project = open_project(config, lambda done, total: observer.progress("train float", done, total), run)
    data, model = project.data, project.model
    sample = data.train.batch([0])[0]
    model, layers = reached(model, sample)
    check_applicable(config.ptq, scheme, model)
    widths = tuple(sorted({*config.bits, *(config.a_bits or ()), 8}))
    weights_only = config.weights_only or scheme.inputs is None
    prices = (
        Prices(CostTable.footprint(layers, widths))
        if weights_only
        else price(str(run.costs if run else config.hardware), layers, widths, batch, _memory(config, model, sample))
    )
    table = prices.table
    limits = _limits(config, table, run, weights_only)
    table = replace(table, limits=limits)  # which the run keeps
    device = Path(config.hardware).stem if weights_only else table.hardware
    held = (Constraint(key, limit, origin=f"{device} holds no more") for key, limit in limits.items())
    constraints = [*config.parsed_constraints(), *held]
    constrained = {constraint.metric for constraint in constraints}
    constraints += [Constraint(name, 1.0, relative=True) for name in config.pareto if name not in constrained]
    for constraint in constraints:
        if constraint.field not in table.fields:
            known = " or ".join(name for name, metric in METRICS.items() if metric.field in table.fields)
            mend = "constrain" if not weights_only else "quantize activations too, or constrain"
            raise ConstraintError(f"{constraint} cannot be kept: no {constraint.metric} is known; {mend} {known}")
    inputs = {None, *(config.bits if config.a_bits is None else config.a_bits)}
    if not any(pair.w_bits in {None, *config.bits} and pair.a_bits in inputs for pair in table.pairs):
        given = f"--bits {_listed(config.bits)}" + (f" --a-bits {_listed(config.a_bits)}" if config.a_bits else "")
        legal = table.pairs if is_table(config.hardware) else get_hardware(config.hardware).pairs
        raise ConfigError(
            f"{given} with --hardware {config.hardware}: it runs "
            f"{listed_pairs(legal)} bits (weights/activations); give --bits of these"
        )
    left_out = sorted(
        {*config.bits, *(config.a_bits or ())} - {width for pair in table.pairs for width in (pair.w_bits, pair.a_bits)}
    )
    if left_out and not weights_only:
        observer.say(
            f"note: {table.hardware} runs {listed_pairs(table.pairs)} bits (weights/activations) of those asked for; "
            f"{', '.join(map(str, left_out))} left out"
        )
    pinned = pinned_ends(layers) if config.pin_ends else {}
    budget = Budget(table, constraints, config.bits, pinned, scheme.name, weights_only, config.a_bits)
    identity = replace(project.identity, rounding=rounding(scheme, config))
    return Problem(config, model, data, sample, layers, table, budget, identity)


def _listed(bits: tuple[int, ...]) -> str:
    return ",".join(map(str, bits))


def _limits(config: SearchConfig, table: CostTable, run: RunFolder | None, weights_only: bool) -> Mapping[str, float]:
    """What the device holds, or held when the run started; of weights alone only some of it is priced."""
    if weights_only:
        known = limits_of(str(run.costs if run else config.hardware))
        return {metric: limit for metric, limit in known.items() if METRICS[metric].field in table.fields}
    # They are missing in runs from before tables had limits
    return limits_of(config.hardware) if table.limits is None else table.limits


def _memory(config: SearchConfig, model: nn.Module, sample: Tensor) -> MemoryPlan | None:
    """Which activations are alive at once; a network that cannot be traced has no plan, and no RAM to constrain."""
    from haq.hwmodels.liveness import plan_memory

    try:
        return plan_memory(model, sample)
    except ModelError:
        limited = not is_table(config.hardware) and "ram" in get_hardware(config.hardware).limits
        if limited or any(constraint.metric == "ram" for constraint in config.parsed_constraints()):
            raise
        return None


def _scheme(config: SearchConfig, observer: Observer) -> Scheme:
    """Checks that the scheme has every candidate width, and says when the hardware's kernels cannot run it."""
    scheme = get_scheme(config.scheme)
    both = config.weights_only or scheme.inputs is None
    inputs = () if both else config.bits if config.a_bits is None else config.a_bits
    for width in sorted({*config.bits, *inputs}):
        if (width in config.bits and width not in scheme.widths) or (
            width in inputs and width not in scheme.input_widths
        ):
            known = ", ".join(map(str, scheme.widths))
            mend = "give --bits of these" if len(scheme.widths) > 1 else "there is nothing to search; use haq quantize"
            raise ConfigError(f"--scheme {scheme.name} is defined for {known} bits, not {width}; {mend}")
    if not config.weights_only and "bit-serial" not in scheme.kernels:
        kinds = ", ".join(scheme.kernels)
        observer.say(f"note: no bit-serial kernel runs {scheme.name} ({kinds}); costs are those of linear widths")
    return scheme
