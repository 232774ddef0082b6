"""Everything that is known before the first trial: network, data, costs, budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from haq.config import SearchConfig
from haq.constraints import Constraint
from haq.data import ImageData
from haq.envs import Budget
from haq.envs.choices import Choices, Offer, choose
from haq.errors import ConfigError, ConstraintError, ModelError, first_names
from haq.hwmodels import CostTable
from haq.hwmodels.hardware import listed_pairs
from haq.hwmodels.pricing import Pricing, open_hardware
from haq.hwmodels.tables.memory import MemoryPlan
from haq.io.prefixes import refuse_object
from haq.layers import LayerSpec, ends, find_shared_inputs
from haq.layers.rest import Rest
from haq.metrics import METRICS
from haq.policy import BitPolicy
from haq.progress import Observer
from haq.quant.ptq import check_applicable
from haq.quant.reach import reached
from haq.quant.sample_counts import Effort
from haq.quant.schemes import Scheme, resolve_scheme
from haq.quant.uncovered import rest_of
from haq.registry import AGENTS
from haq.runs import Identity, RunFolder
from haq.runs.project import open_project
from haq.runs.relocation import Named
from haq.search.agents.protocol import AgentKind
from haq.search.resume_checks import rounding

__all__ = ["Problem", "pose"]


@dataclass(frozen=True)
class Problem:
    """The problem that a search solves.

    Attributes:
        config: The options, with absolute paths and a batch.
        model: The float network in evaluation mode; quantizers are known to reach all its layers.
        data: Training, validation and test images.
        sample: One training image, `(1, C, H, W)`.
        layers: Layers that are searched, in the order of their first call.
        rest: What the network reads beside them.
        table: Costs of every layer at every width that can occur.
        budget: Candidate widths, pinned layers, ties and limits.
        scheme: Quantization scheme.
        agent: The kind of agent that proposes policies.
        start: Widths to score first, inside the budget.
        identity: Fingerprints of the network, the data and everything else that scores depend on.
    """

    config: SearchConfig
    model: nn.Module
    data: ImageData
    sample: Tensor
    layers: list[LayerSpec]
    rest: Rest
    table: CostTable
    budget: Budget
    scheme: Scheme
    agent: AgentKind
    start: BitPolicy | None
    identity: Identity

    @cached_property
    def effort(self) -> Effort:
        """How many samples each step takes."""
        return Effort.of(self.layers, self.data)


def pose(config: SearchConfig, observer: Observer, run: RunFolder | None = None, named: Named | None = None) -> Problem:
    """Loads and traces the network, and prices its layers; writes nothing.

    Args:
        config: Options.
        observer: Receives progress.
        run: A search that is resumed or used. Its prices and limits hold, even if the hardware file has changed; a
            network or data that it was not made with is refused.
        named: Objects that were given instead of names.

    Raises:
        ConfigError: The hardware supports none of the widths, or the run was searched with other options.
        ConstraintError: No policy meets the constraints.
        DataError: The data cannot be used with the model.
        HardwareError: The hardware is unknown or its description is wrong.
        ModelError: The model or its weights are wrong.
    """
    config = config.with_absolute_paths()
    named = named or Named()
    if run is not None:
        run.check()
    hardware = _hardware(config, named, run)  # a wrong name is known before the data is read
    config.check_metrics()
    batch = config.batch or hardware.batch
    config = replace(config, batch=batch)
    agent, scheme = _agent(config, named), _scheme(config, named, observer)
    project = open_project(config, observer, run, named)
    data, model = project.data, project.model
    sample = data.train.batch([0])[0]
    model, every = reached(model, sample)
    if run is not None and run.knows_layers:  # an older run may know fewer; the others stay as they were
        kept = {layer.name for layer in run.read_layers()}
        every = [layer for layer in every if layer.name in kept] or every
    check_applicable(config.ptq, scheme, model, sample)
    ruled = {width for rule in config.rules for width in (*rule.w_bits, *(rule.a_bits or ()))}
    widths = tuple(sorted({*config.bits, *(config.a_bits or ()), *ruled, 8}))
    weights_only = config.weights_only or scheme.inputs is None
    choices = _choices(
        config, every, hardware, weights_only, find_shared_inputs(model, sample) if hardware.ties else []
    )
    layers = [layer for layer in every if layer.name not in choices.floating]
    rest = rest_of(model, sample, layers) if run is None else run.read_rest()
    _report_rules(choices, every, observer)
    table = (
        CostTable.footprint(layers, widths, rest)
        if weights_only
        else hardware.price(layers, widths, batch, _memory(config, hardware, model, sample), rest)
    )
    limits = dict(hardware.limits)
    if weights_only:  # with weights only, not every metric that the device limits is priced
        limits = {key: limit for key, limit in limits.items() if METRICS[key].field in table.fields}
    table = replace(table, limits=limits)  # saved with the run
    device = Path(config.hardware).stem if weights_only else table.hardware
    held = (Constraint(key, limit, origin=f"{device} holds no more") for key, limit in limits.items())
    constraints = [*config.parsed_constraints(), *held]
    constrained = {constraint.metric for constraint in constraints}
    constraints += [Constraint(name, 1.0, relative=True) for name in config.pareto if name not in constrained]
    for constraint in constraints:
        if constraint.field not in table.fields:
            known = " or ".join(name for name, metric in METRICS.items() if metric.field in table.fields)
            fix = "constrain" if not weights_only else "quantize activations too, or constrain"
            raise ConstraintError(f"{constraint} cannot be checked: {constraint.metric} is not known; {fix} {known}")
    inputs = {None, *(config.bits if config.a_bits is None else config.a_bits)}
    if not any(pair.w_bits in {None, *config.bits} and pair.a_bits in inputs for pair in table.pairs):
        given = f"--bits {_listed(config.bits)}" + (f" --a-bits {_listed(config.a_bits)}" if config.a_bits else "")
        raise ConfigError(
            f"{given} with --hardware {config.hardware}: it runs "
            f"{listed_pairs(hardware.pairs)} bits (weights/activations); choose --bits from these"
        )
    left_out = sorted(
        {*config.bits, *(config.a_bits or ())} - {width for pair in table.pairs for width in (pair.w_bits, pair.a_bits)}
    )
    if left_out and not weights_only:
        observer.say(
            f"note: of the requested widths, {table.hardware} runs {listed_pairs(table.pairs)} bits "
            f"(weights/activations); left out: {', '.join(map(str, left_out))}"
        )
    budget = Budget(
        table, constraints, config.bits, choices.pinned, config.scheme, weights_only, config.a_bits,
        choices.candidates, choices.ties,
    )  # fmt: skip
    start = None if config.start is None else _fitted(config.start.with_scheme(config.scheme), budget)
    identity = replace(project.identity, rounding=rounding(scheme, config))
    return Problem(config, model, data, sample, layers, rest, table, budget, scheme, agent, start, identity)


def _choices(
    config: SearchConfig,
    layers: Sequence[LayerSpec],
    hardware: Pricing,
    weights_only: bool,
    shared: Sequence[tuple[str, ...]],
) -> Choices:
    """Applies the rules to the layers; raises `ConfigError` if they do not fit the network, or the hardware."""
    held = ends(layers) if config.pin_ends else ()
    a_bits = config.bits if config.a_bits is None else config.a_bits
    offer = Offer(Path(config.hardware).stem, hardware.pairs, a_bits, weights_only, held, tuple(shared))
    return choose(config.rules, layers, offer).with_lookups(layers, offer, config.bits)


def _report_rules(choices: Choices, layers: Sequence[LayerSpec], observer: Observer) -> None:
    """Says what the rules leave out of the search, and what they tie."""
    if choices.floating:
        weights = sum(layer.params for layer in layers if layer.name in choices.floating)
        share = weights / sum(layer.params for layer in layers)
        observer.say(f"in floating point: {first_names(choices.floating)}, {share:.1%} of the weights of all layers")
    for tie in choices.ties:
        observer.say(f"tied: {first_names(tie)}")


def _listed(bits: tuple[int, ...]) -> str:
    return ",".join(map(str, bits))


def _hardware(config: SearchConfig, named: Named, run: RunFolder | None) -> Pricing:
    """Returns what prices the layers: of a run, the table that it began with."""
    given = named.object("hardware")

    def opened() -> Pricing:
        return open_hardware(config.hardware if given is None else given)

    if run is None:
        return opened()
    if config.batch is None:
        opened()  # a wrong name is refused
    kept = open_hardware(run.costs)
    assert isinstance(kept.source, CostTable)
    if kept.source.limits is None:  # runs from before tables had limits
        return replace(kept, source=replace(kept.source, limits=opened().limits))
    return kept


def _agent(config: SearchConfig, named: Named) -> AgentKind:
    """Returns the agent by its name, from a user's file, or as given."""
    given = named.object("agent")
    if given is None:
        refuse_object("agent", config.agent, ConfigError)
    return AgentKind.of(AGENTS.resolve(config.agent) if given is None else given, config.agent)


def _fitted(start: BitPolicy, budget: Budget) -> BitPolicy:
    """Returns widths to start with, lowered if they exceed the budget.

    Raises:
        ConfigError: They are for other layers, or a width is not a candidate.
    """
    if odd := sorted(set(start) ^ set(budget.table.layers)):
        raise ConfigError(
            f"start: layer {odd[0]!r} is not in both the policy and the network; give a policy for this network"
        )
    if (fault := budget.fault(start)) is not None:
        raise ConfigError(f"start: {fault}; change the policy, or --bits, --a-bits, --free-ends or the rules")
    return start if budget.allows(start) else budget.decrease(start)


def _memory(config: SearchConfig, hardware: Pricing, model: nn.Module, sample: Tensor) -> MemoryPlan | None:
    """Returns which activations are alive at once; `None` if the network cannot be traced and RAM is not limited."""
    from haq.hwmodels.liveness import plan_memory

    try:
        return plan_memory(model, sample)
    except ModelError:
        limited = not isinstance(hardware.source, CostTable) and "ram" in hardware.limits
        if limited or any(constraint.metric == "ram" for constraint in config.parsed_constraints()):
            raise
        return None


def _scheme(config: SearchConfig, named: Named, observer: Observer) -> Scheme:
    """Checks that the scheme has every candidate width, and reports if the hardware's kernels cannot run it."""
    scheme = resolve_scheme(config.scheme, named.object("scheme"))
    both = config.weights_only or scheme.inputs is None
    inputs = () if both else config.bits if config.a_bits is None else config.a_bits
    for width in sorted({*config.bits, *inputs}):
        if (width in config.bits and width not in scheme.widths) or (
            width in inputs and width not in scheme.input_widths
        ):
            known = ", ".join(map(str, scheme.widths))
            fix = (
                "choose --bits from these" if len(scheme.widths) > 1 else "there is nothing to search; use haq quantize"
            )
            raise ConfigError(f"--scheme {scheme.name} is defined for {known} bits, not {width}; {fix}")
    for rule in config.rules:
        a_bits = () if both else rule.a_bits or (rule.w_bits if rule.kind == "pin" else ())
        if odd := [*({*rule.w_bits} - {*scheme.widths}), *({*a_bits} - {*scheme.input_widths})]:
            known = ", ".join(map(str, scheme.widths))
            raise ConfigError(f"{rule}: --scheme {scheme.name} is defined for {known} bits, not {odd[0]}")
    if not config.weights_only and "bit-serial" not in scheme.kernels:
        kinds = ", ".join(scheme.kernels)
        observer.say(f"note: no bit-serial kernel runs {scheme.name} ({kinds}); costs are those of linear widths")
    return scheme
