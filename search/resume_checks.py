"""Checks that trials, layers and quantizers are still those of the original search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from haq.config import SearchConfig
from haq.errors import ConfigError, HardwareError
from haq.quant.compensation import Reads, round_layer
from haq.quant.schemes import Scheme
from haq.runs import RunFolder, Trial

if TYPE_CHECKING:
    from haq.search.problem import Problem

__all__ = ["check_same_run", "rounding"]

_PRICES_APART = 1e-6  # relative difference allowed between a cost in the file and the one computed now
_MOVED = 1e-3  # a rounded number that differs by more than this has moved
_TIES = 0.25  # share of rounded numbers that may move
_RAMP = 33  # numbers from −1 to 1 that show how a scheme rounds


def rounding(scheme: Scheme, config: SearchConfig) -> tuple[float, ...]:
    """Returns fixed weights as the scheme rounds them at each candidate width, with and without compensation.

    The compensation is for fixed inputs. The result differs if a quantizer has changed, and for runs from before
    rounding was compensated.
    """
    ramp = torch.linspace(-1, 1, _RAMP)[None]
    widths = sorted({*config.bits, 8} & set(scheme.widths))
    layer = nn.Linear(_RAMP, 1, bias=False)
    layer.weight = nn.Parameter(ramp)
    reads = Reads(layer, 1)
    reads.add(torch.sin(0.1 * torch.outer(torch.arange(4.0 * _RAMP), torch.arange(1.0, 1 + _RAMP))))
    quantizers = {width: scheme.weight_quantizer(ramp, width, reads.shown).eval() for width in widths}
    rounded = round_layer(layer, quantizers, reads.moments())
    made = [quantizer(ramp).flatten() for quantizer in quantizers.values()]
    made += [found.quantizer(found.weight(ramp)).flatten() for found in rounded.values()]
    return tuple(float(f"{value:.6g}") for values in made for value in values.detach().tolist())


def check_same_run(run: RunFolder, problem: Problem) -> None:
    """Refuses a run whose trials do not match the problem, so that scores of two networks are never mixed.

    These checks add to those made when the network is opened.

    Args:
        run: A search that is resumed or used.
        problem: The problem as posed now.

    Raises:
        ConfigError: The scheme no longer rounds as it did, or trials are of another network or have other prices.
    """
    known = run.read_identity()
    if known is not None and not _rounds_alike(known.rounding, problem.identity.rounding):
        raise ConfigError(
            f"the quantizers of --scheme {problem.config.scheme} no longer round as they did in run "
            f"{str(run.path)!r}; use the version of haq that config.yaml names, or start a new search"
        )
    for trial in run.read_trials():
        if (reason := _foreign(trial, problem)) is not None:
            raise ConfigError(
                f"trial {trial.number} in trials.jsonl of run {str(run.path)!r} {reason}: the file belongs to another "
                "run, or the model or prices have changed; copy the run folder again, or start a new search"
            )


def _rounds_alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether both are rounded in the same way.

    On another machine ties may round to the other side; a quantizer that changed moves most numbers.
    """
    if not one:
        return True
    moved = sum(abs(a - b) > _MOVED for a, b in zip(one, other, strict=False))
    return len(one) == len(other) and moved <= _TIES * len(one)


def _foreign(trial: Trial, problem: Problem) -> str | None:
    """Returns why the trial cannot be from this search, or `None` if it can."""
    names = {layer.name for layer in problem.layers}
    if unknown := sorted(names ^ set(trial.policy)):
        return f"does not have the same layers as the network, for example {unknown[0]!r}"
    if trial.policy.scheme != problem.config.scheme:
        return f"has --scheme {trial.policy.scheme}, not {problem.config.scheme}"
    try:
        prices = problem.table.cost(trial.policy)
    except HardwareError as error:
        return f"has widths without a price ({error})"
    for field, cost in prices.items():
        recorded = trial.cost.get(field)
        if recorded is not None and abs(recorded - cost) > _PRICES_APART * abs(cost):
            return f"has {field}={recorded:g}, but its policy costs {cost:g}"
    return None
