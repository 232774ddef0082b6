"""Budgets on the cost of a policy, and HAQ's way of meeting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from haq.constraints import Constraint
from haq.errors import ConstraintError, HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.hardware import listed_pairs
from haq.metrics import format_cost
from haq.policy import BitPolicy, LayerBits

__all__ = ["Budget"]

Field = Literal["w_bits", "a_bits"]
Costs = npt.NDArray[np.float64]

_ROUNDING = 1e-9


class Budget:
    """One or more upper limits; a policy must meet all of them at once.

    Candidates are the pairs of widths that the table prices and `bits` allows, so a search never proposes what the
    hardware cannot run.

    Args:
        table: Prices every layer at every candidate pair, and at the pinned and the uniform 8-bit widths.
        constraints: Limits; the lowest one of each metric counts. Relative ones are fractions of the uniform 8-bit
            network's cost.
        bits: Candidate widths, ascending.
        pinned: Layers whose widths the search does not change.
        scheme: Name of the quantization scheme, for the policies.
        weights_only: Whether activations stay in floating point, so that a policy chooses only widths of weights.
        a_bits: Candidate widths of activations; by default `bits`.

    Attributes:
        pairs: Candidates for a free layer, ascending.
        fields: Widths that are chosen for a layer, in this order.

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
        self._sums = [constraint for constraint in self.constraints if constraint.field in table.additive]
        self._cells: dict[tuple[str, LayerBits], Costs] = {}
        self._check_reachable()

    def _check_reachable(self) -> None:
        for constraint in self.constraints:
            reachable = self.table.cost(self._cheapest([constraint]))[constraint.field]
            if reachable > constraint.limit:
                left = self.table.rest.get(constraint.field)
                outside = f" ({format_cost(constraint.field, left)} of it outside of the layers)" if left else ""
                raise ConstraintError(
                    f"no policy meets {constraint}: the smallest reachable {constraint.metric} is "
                    f"{format_cost(constraint.field, reachable)}{outside}, with free layers at {self.bits[0]} bits and "
                    "more; raise the limit or allow smaller --bits"
                )
        self._fallback = self._cheapest(self.constraints)
        if not self.allows(self._fallback):
            limits = " and ".join(map(str, self.constraints))
            raise ConstraintError(f"no policy was found that meets {limits} at once; raise a limit")

    def _cheapest(self, constraints: Sequence[Constraint]) -> BitPolicy:
        """Returns the policy of least cost in units of the limits, chosen for each layer by itself.

        The lowest widths need not be the cheapest: microcontrollers take time to unpack them.
        """
        lowest = self.uniform(self.bits[0])

        def share(name: str, pair: LayerBits, constraint: Constraint) -> float:
            if constraint.field in self.table.metrics:
                return self.table.layer_cost(name, pair, constraint.field) / constraint.limit
            beside_lowest = self.table.cost(BitPolicy({**lowest, name: pair}))  # a peak depends on other layers
            return beside_lowest[constraint.field] / constraint.limit

        chosen = {}
        for name in (name for name in self.table.layers if name not in self.pinned):
            totals = {pair: sum(share(name, pair, constraint) for constraint in constraints) for pair in self.pairs}
            chosen[name] = min(self.pairs, key=totals.__getitem__)
        return BitPolicy({**lowest, **chosen}, self.scheme)

    def reachable(self, metric: str) -> float:
        """Returns the smallest cost of all policies, in the metric's kept unit."""
        limit = Constraint(metric, 1.0)
        return self.table.cost(self._cheapest([limit]))[limit.field]

    def limit(self, metric: str) -> float:
        """Returns the limit on a metric, or the uniform 8-bit network's cost if there is no limit."""
        limits = {constraint.metric: constraint.limit for constraint in self.constraints}
        return limits.get(metric, self._uniform8[Constraint(metric, 1.0).field])

    def tightened(self, constraints: Sequence[Constraint]) -> Budget:
        """Returns a budget with these limits as well; raises like the constructor."""
        return Budget(self.table, [*self.constraints, *constraints], *self._given)

    # Candidates

    @property
    def bits(self) -> tuple[int, ...]:
        """Candidate widths of weights, ascending."""
        return self.widths("w_bits")

    def widths(self, field: Field, w_bits: int | None = None) -> tuple[int, ...]:
        """Returns candidate widths of `field`, ascending; with `w_bits`, only those of pairs with such weights."""
        pairs = self.pairs if w_bits is None else (pair for pair in self.pairs if pair.w_bits == w_bits)
        return tuple(sorted({getattr(pair, field) for pair in pairs} - {None}))

    def uniform(self, bits: int) -> BitPolicy:
        """Returns the policy with weights of `bits` in all layers that are not pinned; see `uniform_pair`."""
        pair = self.uniform_pair(bits)
        return BitPolicy({name: self.pinned.get(name, pair) for name in self.table.layers}, self.scheme)

    def uniform_pair(self, bits: int) -> LayerBits:
        """Returns the pair for weights of `bits`: equal widths, or the nearest legal width of activations."""
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
        """Returns the next candidate whose width of `field` is wider or narrower, or `None`."""
        return (self._higher if up else self._lower).get((pair, field))

    def _next(self, pair: LayerBits, field: Field, direction: int) -> LayerBits | None:
        """Returns the candidate with the nearest width of `field` in a direction; the other stays or moves with it."""

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
        """Raises the widths of a policy that fits, as long as it still fits.

        It visits layers from the first to the last, weights before activations, and raises each by one candidate, over
        and over. That is the opposite order of `decrease`, which also lowers widths that save nothing, such as the
        activations of a layer that waits for its weights; `spend` raises those again.
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

        The order is that of HAQ's public code: it visits layers from the last to the first, activations before weights,
        and lowers each by one candidate, over and over, until all limits hold. A policy that fits is returned
        unchanged. Where costs do not fall with the widths, this may end at the lowest widths without a fit; then it
        returns the cheapest policy.
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
        """Returns the cost of a layer in units of the limits on sums over layers, `(limits,)`."""
        key = name, pair
        if key not in self._cells:
            self._cells[key] = np.array([self.table.layer_cost(name, pair, c.field) / c.limit for c in self._sums])
        return self._cells[key]

    def _totals(self, policy: BitPolicy) -> Costs:
        totals: Costs = np.sum([self._cell(name, pair) for name, pair in policy.items()], axis=0)
        return totals

    def _may_fit(self, totals: Costs) -> bool:
        """Whether running totals, with their rounding errors, may meet the limits; the table then decides."""
        return bool((totals <= 1 + _ROUNDING).all())
