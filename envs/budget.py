"""Budgets on a policy's cost, and HAQ's method of meeting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from haq.constraints import Constraint, format_cost
from haq.errors import ConstraintError, HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.hardware import listed_pairs
from haq.policy import BitPolicy, LayerBits

__all__ = ["Budget"]

Field = Literal["w_bits", "a_bits"]
Costs = npt.NDArray[np.float64]

_ROUNDING = 1e-9


class Budget:
    """Upper limits that a policy must meet, all of them at once.

    Candidates are the pairs of widths that the table prices and `bits` allows, so widths that the hardware cannot run
    are never proposed.

    Args:
        table: Prices every layer at every candidate pair, and at the pinned and the uniform 8-bit widths.
        constraints: Limits; the lowest limit on each metric counts. Relative limits are fractions of the uniform 8-bit
            network's cost.
        bits: Candidate widths, ascending.
        pinned: Layers whose widths are fixed.
        scheme: Name of the scheme that implements the widths; policies carry it.
        weights_only: Whether activations stay in floating point, so that only widths of weights are chosen.
        a_bits: Candidate widths of activations, if they differ from those of weights.

    Attributes:
        pairs: Candidates for a free layer, ascending.
        fields: What is decided for a layer, in this order.

    Raises:
        ConstraintError: No policy meets a limit; the message names the smallest reachable value.
    """

    def __init__(
        self,
        table: CostTable,
        constraints: Sequence[Constraint],
        bits: Sequence[int],
        pinned: Mapping[str, LayerBits],
        scheme: str = "linear",
        weights_only: bool = False,
        a_bits: Sequence[int] | None = None,
    ) -> None:
        self.table, self.scheme = table, scheme
        self._given = (tuple(bits), dict(pinned), scheme, weights_only, a_bits)
        self.pinned = {name: LayerBits(b.w_bits, None) if weights_only else b for name, b in pinned.items()}
        self.fields: tuple[Field, ...] = ("w_bits",) if weights_only else ("w_bits", "a_bits")
        inputs = {None, *(bits if a_bits is None else a_bits)}
        self.pairs = tuple(pair for pair in table.pairs if pair.w_bits in {None, *bits} and pair.a_bits in inputs)
        self._lower = {(pair, field): self._next(pair, field, -1) for pair in self.pairs for field in self.fields}
        self._higher = {(pair, field): self._next(pair, field, 1) for pair in self.pairs for field in self.fields}
        whole = BitPolicy(dict.fromkeys(table.layers, self._nearest_pair(8, table.pairs)), scheme)
        self._uniform8 = uniform8 = table.cost(whole)
        resolved = [constraint.resolve(uniform8[constraint.field]) for constraint in constraints]
        self.constraints = tuple(
            min((other for other in resolved if other.metric == metric), key=lambda other: other.limit)
            for metric in dict.fromkeys(constraint.metric for constraint in resolved)
        )
        self._sums = [constraint for constraint in self.constraints if constraint.field in table.metrics]
        self._cells: dict[tuple[str, LayerBits], Costs] = {}
        self._check_reachable()

    def _check_reachable(self) -> None:
        for constraint in self.constraints:
            reachable = self.table.cost(self._cheapest([constraint]))[constraint.field]
            if reachable > constraint.limit:
                raise ConstraintError(
                    f"no policy meets {constraint}: the smallest reachable {constraint.metric} is "
                    f"{format_cost(constraint.field, reachable)}, with free layers at {self.bits[0]} bits and more; "
                    "raise the limit or allow smaller --bits"
                )
        self._fallback = self._cheapest(self.constraints)
        if not self.allows(self._fallback):
            limits = " and ".join(map(str, self.constraints))
            raise ConstraintError(f"no policy was found that meets {limits} at once; raise a limit")

    def _cheapest(self, constraints: Sequence[Constraint]) -> BitPolicy:
        """Returns the policy that minimises every layer's cost on its own, in units of the limits.

        The lowest widths need not be the cheapest: microcontrollers take time to unpack them.
        """
        lowest = self.uniform(self.bits[0])

        def share(name: str, pair: LayerBits, constraint: Constraint) -> float:
            if constraint.field in self.table.metrics:
                return self.table.layer_cost(name, pair, constraint.field) / constraint.limit
            beside_lowest = self.table.cost(BitPolicy({**lowest, name: pair}))  # a peak is not a sum over layers
            return beside_lowest[constraint.field] / constraint.limit

        chosen = {}
        for name in (name for name in self.table.layers if name not in self.pinned):
            totals = {pair: sum(share(name, pair, constraint) for constraint in constraints) for pair in self.pairs}
            chosen[name] = min(self.pairs, key=totals.__getitem__)
        return BitPolicy({**lowest, **chosen}, self.scheme)

    def reachable(self, metric: str) -> float:
        """Returns the smallest cost that a policy can have, in the unit of the metric's field."""
        limit = Constraint(metric, 1.0)
        return self.table.cost(self._cheapest([limit]))[limit.field]

    def limit(self, metric: str) -> float:
        """Returns the limit on a metric, or the uniform 8-bit network's cost if there is no limit."""
        limits = {constraint.metric: constraint.limit for constraint in self.constraints}
        return limits.get(metric, self._uniform8[Constraint(metric, 1.0).field])

    def tightened(self, constraints: Sequence[Constraint]) -> Budget:
        """Returns a budget with these limits added; raises like the constructor."""
        return Budget(self.table, [*self.constraints, *constraints], *self._given)

    # Candidates

    @property
    def bits(self) -> tuple[int, ...]:
        """Candidate widths of weights, ascending."""
        return self.widths("w_bits")

    def widths(self, field: Field, w_bits: int | None = None) -> tuple[int, ...]:
        """Returns the candidate widths of `field`, ascending; with `w_bits`, only those legal beside such weights."""
        pairs = self.pairs if w_bits is None else (pair for pair in self.pairs if pair.w_bits == w_bits)
        return tuple(sorted({getattr(pair, field) for pair in pairs} - {None}))

    def uniform(self, bits: int) -> BitPolicy:
        """Returns the policy with weights of `bits` in all layers that are not pinned; see `uniform_pair`."""
        pair = self.uniform_pair(bits)
        return BitPolicy({name: self.pinned.get(name, pair) for name in self.table.layers}, self.scheme)

    def uniform_pair(self, bits: int) -> LayerBits:
        """Returns weights of `bits` with activations of the same width, or of the nearest legal one."""
        candidates = [pair for pair in self.pairs if pair.w_bits == bits]
        return self._nearest_pair(bits, candidates or self.table.pairs)

    def _nearest_pair(self, bits: int, among: Sequence[LayerBits]) -> LayerBits:
        pairs = [pair for pair in among if pair.w_bits == bits]
        if not pairs:
            raise HardwareError(
                f"the cost table of {self.table.hardware!r} has no weights of {bits} bits; it covers "
                f"{listed_pairs(self.table.pairs)}"
            )
        return min(pairs, key=lambda pair: abs((pair.a_bits or bits) - bits))

    def step(self, pair: LayerBits, field: Field, up: bool) -> LayerBits | None:
        """Returns the next candidate with a wider or a narrower width of `field`, if there is one.

        Args:
            pair: The candidate to start from.
            field: The width to change.
            up: Whether to widen it.
        """
        return (self._higher if up else self._lower).get((pair, field))

    def _next(self, pair: LayerBits, field: Field, direction: int) -> LayerBits | None:
        """Returns the candidate with the next width of `field`; its other width does not move the opposite way."""

        def distance(other: LayerBits) -> tuple[int, int]:
            moves = {name: direction * (getattr(other, name) - getattr(pair, name)) for name in self.fields}
            return moves[field], sum(moves.values())

        onward = [
            other
            for other in self.pairs
            if distance(other)[0] > 0
            and all(direction * (getattr(other, name) - getattr(pair, name)) >= 0 for name in self.fields)
        ]
        return min(onward, key=distance, default=None)

    # Limits

    def allows(self, policy: BitPolicy) -> bool:
        """Whether the policy meets every limit."""
        cost = self.table.cost(policy)
        return all(cost[constraint.field] <= constraint.limit for constraint in self.constraints)

    def spend(self, policy: BitPolicy) -> BitPolicy:
        """Raises the widths of a policy that fits as far as the budget allows.

        Layers are visited from the first to the last, weights before activations, and raised by one candidate each,
        again and again. This is the opposite order of `decrease`, which also lowers widths that save nothing, such as
        the activations of a layer that waits for its weights; those are raised again here.
        """
        layers, totals, raised = dict(policy), self._totals(policy), True
        while raised:
            raised = False
            for name in (name for name in layers if name not in self.pinned):
                for field in self.fields:
                    before, higher = layers[name], self._higher.get((layers[name], field))
                    if higher is None:
                        continue
                    tried = totals + self._cell(name, higher) - self._cell(name, before)
                    layers[name] = higher
                    if self._may_fit(tried) and self.allows(BitPolicy(layers, policy.scheme)):
                        totals, raised = tried, True
                    else:
                        layers[name] = before
        return BitPolicy(layers, policy.scheme)

    def decrease(self, policy: BitPolicy) -> BitPolicy:
        """Fits a policy to the budget by HAQ's sequential decrease (arXiv:1811.08886, section 3.4).

        The order is that of HAQ's public code: layers are visited from the last to the first, activations before
        weights, and lowered by one candidate each, again and again, until all limits hold. A policy that fits is
        returned unchanged. If costs do not fall with the widths, even the lowest widths may not fit; the cheapest
        policy is returned then.
        """
        if self.allows(policy):
            return policy
        layers, totals, lowered = dict(policy), self._totals(policy), True
        free = [name for name in reversed(layers) if name not in self.pinned]
        while lowered:
            lowered = False
            for name in free:
                for field in reversed(self.fields):
                    before, lower = layers[name], self._lower.get((layers[name], field))
                    if lower is None:
                        continue
                    layers[name], lowered = lower, True
                    totals = totals + self._cell(name, lower) - self._cell(name, before)
                    if self._may_fit(totals) and self.allows(candidate := BitPolicy(layers, policy.scheme)):
                        return candidate
        return self._fallback

    def _cell(self, name: str, pair: LayerBits) -> Costs:
        """Returns a layer's cost in units of the limits, for metrics that are sums over layers, `(limits,)`."""
        key = name, pair
        if key not in self._cells:
            self._cells[key] = np.array([self.table.layer_cost(name, pair, c.field) / c.limit for c in self._sums])
        return self._cells[key]

    def _totals(self, policy: BitPolicy) -> Costs:
        totals: Costs = np.sum([self._cell(name, pair) for name, pair in policy.items()], axis=0)
        return totals

    def _may_fit(self, totals: Costs) -> bool:
        """Whether a policy may fit by its running totals; they have rounding errors, so the table decides."""
        return bool((totals <= 1 + _ROUNDING).all())
