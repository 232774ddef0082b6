"""Budgets on the cost of a policy, and HAQ's way of meeting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from haq.constraints import Constraint
from haq.envs.candidates import Candidates, Field
from haq.errors import ConstraintError, HardwareError
from haq.hwmodels import CostTable
from haq.hwmodels.hardware import listed_pairs
from haq.metrics import format_cost
from haq.policy import BitPolicy, LayerBits

__all__ = ["Budget"]

Costs = npt.NDArray[np.float64]

_ROUNDING = 1e-9


class Budget:
    """One or more upper limits; a policy must meet all of them at once.

    Candidates are the pairs of widths that the table prices and `bits` allows, so a search never proposes what the
    hardware cannot run. Layers that are tied take one decision: they have the same pair in every policy.

    Args:
        table: Prices every layer at every candidate pair, and at the pinned and the uniform 8-bit widths.
        constraints: Limits; the lowest one of each metric counts. Relative ones are fractions of the uniform 8-bit
            network's cost.
        bits: Candidate widths, ascending.
        pinned: Layers whose widths the search does not change.
        scheme: Name of the quantization scheme, for the policies.
        weights_only: Whether activations stay in floating point, so that a policy chooses only widths of weights.
        a_bits: Candidate widths of activations; by default `bits`.
        candidates: Layer → the pairs of widths that it may have, for layers with candidates of their own.
        ties: Groups of layers that take one decision; each has the same candidates, and none is in two groups.

    Attributes:
        pairs: Candidates of any free layer, ascending; see `candidates` for those of one.
        fields: Widths that are chosen for a layer, in this order.
        decisions: What is decided, in the order of the layers: names of layers that get one pair of widths. Most
            decisions are of one layer.

    Raises:
        ConstraintError: No policy meets a limit; the message names the smallest reachable value.
        ValueError: Tied layers have different candidates, or one of them is pinned or in two ties.
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
        candidates: Mapping[str, Sequence[LayerBits]] | None = None,
        ties: Sequence[Sequence[str]] = (),
    ) -> None:
        self.table, self.scheme = table, scheme
        self._given = (tuple(bits), dict(pinned), scheme, weights_only, a_bits, candidates, ties)
        self.pinned = {name: LayerBits(b.w_bits, None) if weights_only else b for name, b in pinned.items()}
        self.fields: tuple[Field, ...] = ("w_bits",) if weights_only else ("w_bits", "a_bits")
        inputs = {None, *(bits if a_bits is None else a_bits)}
        usual = tuple(pair for pair in table.pairs if pair.w_bits in {None, *bits} and pair.a_bits in inputs)
        self._candidates = self._candidates_of_layers(usual, candidates or {})
        free = {pair for name in table.layers if name not in self.pinned for pair in self._candidates[name].pairs}
        self.pairs = tuple(pair for pair in table.pairs if pair in free) or usual
        self.decisions = self._decided(ties)
        self._led = {layers[0]: layers for layers in self.decisions}
        whole = BitPolicy(dict.fromkeys(table.layers, self._nearest_pair(8, table.pairs)), scheme)
        self._uniform8 = uniform8 = table.cost(whole)
        resolved = [constraint.resolve(uniform8[constraint.field]) for constraint in constraints]
        self.constraints = tuple(
            min((other for other in resolved if other.metric == metric), key=lambda other: other.limit)
            for metric in dict.fromkeys(constraint.metric for constraint in resolved)
        )
        self._sums = [constraint for constraint in self.constraints if constraint.field in table.additive]
        self._cells: dict[tuple[tuple[str, ...], LayerBits], Costs] = {}
        self._check_reachable()

    def _candidates_of_layers(
        self, usual: Sequence[LayerBits], own: Mapping[str, Sequence[LayerBits]]
    ) -> dict[str, Candidates]:
        """Returns the candidates of every layer; layers that may have the same pairs share one object."""
        pairs = {name: (pair,) for name, pair in self.pinned.items()}
        chosen = {name: pairs.get(name) or tuple(own.get(name, usual)) for name in self.table.layers}
        made = {each: Candidates(each, self.fields) for each in dict.fromkeys(chosen.values())}
        return {name: made[each] for name, each in chosen.items()}

    def _decided(self, ties: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """Returns the groups of layers that are decided together, in the order of their first layers."""
        tied: dict[str, tuple[str, ...]] = {}
        for tie in ties:
            layers = tuple(name for name in self.table.layers if name in tie)
            if len({self.candidates(name) for name in layers}) != 1 or {*tie} & {*tied, *self.pinned}:
                raise ValueError(f"{tie}: tied layers must have the same candidates, and be in no other tie")
            tied |= dict.fromkeys(layers, layers)
        free = (name for name in self.table.layers if name not in self.pinned)
        return tuple(dict.fromkeys(tied.get(name, (name,)) for name in free))

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
        """Returns the policy of least cost in units of the limits, chosen for each decision by itself.

        The lowest widths need not be the cheapest: microcontrollers take time to unpack them.
        """
        lowest = self.uniform(self.bits[0])

        def share(layers: tuple[str, ...], pair: LayerBits, constraint: Constraint) -> float:
            if constraint.field in self.table.metrics:
                return self.cost(layers, pair, constraint.field) / constraint.limit
            # A peak depends on other layers
            beside_lowest = self.table.cost(BitPolicy({**lowest, **dict.fromkeys(layers, pair)}))
            return beside_lowest[constraint.field] / constraint.limit

        chosen: dict[str, LayerBits] = {}
        for layers in self.decisions:
            pairs = self.candidates(layers[0])
            totals = {pair: sum(share(layers, pair, constraint) for constraint in constraints) for pair in pairs}
            chosen |= dict.fromkeys(layers, min(pairs, key=totals.__getitem__))
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
        """Candidate widths of weights of any free layer, ascending."""
        return self.widths("w_bits")

    def widths(self, field: Field, w_bits: int | None = None, layer: str | None = None) -> tuple[int, ...]:
        """Returns candidate widths, ascending.

        Args:
            field: Which widths.
            w_bits: Takes only those of pairs with such weights.
            layer: Takes only the candidates of this layer; by default those of any free layer.
        """
        found = Candidates(self.pairs, ()) if layer is None else self._candidates[layer]
        return found.widths(field, w_bits)

    def candidates(self, layer: str) -> tuple[LayerBits, ...]:
        """Returns the pairs of widths that a layer may have, ascending; a pinned layer has one."""
        return self._candidates[layer].pairs

    def uniform(self, bits: int) -> BitPolicy:
        """Returns the policy with weights of `bits` in all layers that are not pinned; see `uniform_of`."""
        return self.uniform_of(self.uniform_pair(bits))

    def uniform_of(self, pair: LayerBits) -> BitPolicy:
        """Returns the policy with one pair of widths in all layers that are not pinned.

        A layer that may not have the pair, while others may, gets its nearest candidate. If no layer may have the pair,
        the policy is not one of the search, and serves to compare with.
        """
        if pair not in self.pairs:
            return self._all(pair)
        return BitPolicy({name: self._candidates[name].nearest(pair) for name in self.table.layers}, self.scheme)

    @property
    def uniform8(self) -> BitPolicy:
        """The policy of 8 bits in all layers that are not pinned, candidates or not, to compare others with."""
        return self._all(self.uniform_pair(8))

    def _all(self, pair: LayerBits) -> BitPolicy:
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

    def step(self, layer: str, pair: LayerBits, field: Field, up: bool) -> LayerBits | None:
        """Returns a layer's next candidate, or `None`.

        Args:
            layer: Whose candidates count.
            pair: The layer's pair now.
            field: The width to change; the other one stays or moves in the same direction.
            up: Whether the width becomes wider or narrower.
        """
        return self._candidates[layer].step(pair, field, up)

    def fault(self, policy: BitPolicy) -> str | None:
        """Returns what in a policy the candidates and ties do not allow, or `None`; limits are another matter.

        Args:
            policy: Of the table's layers.
        """
        for name, pair in policy.items():
            if pair not in (legal := self.candidates(name)):
                shown = f"{listed_pairs((pair,))} bits (weights/activations)"
                return f"{shown} for layer {name!r}, which is no candidate; the search allows {listed_pairs(legal)}"
        for layers in self.decisions:
            if odd := next((name for name in layers if policy[name] != policy[layers[0]]), None):
                return f"different widths for layers {layers[0]!r} and {odd!r}, which are tied"
        return None

    # Limits

    def allows(self, policy: BitPolicy) -> bool:
        """Whether the policy meets every limit."""
        cost = self.table.cost(policy)
        return all(cost[constraint.field] <= constraint.limit for constraint in self.constraints)

    def spend(self, policy: BitPolicy) -> BitPolicy:
        """Raises the widths of a policy that fits, as long as it still fits.

        It visits decisions from the first to the last, weights before activations, and raises each by one candidate,
        over and over. That is the opposite order of `decrease`, which also lowers widths that save nothing, such as the
        activations of a layer that waits for its weights; `spend` raises those again.
        """
        layers, totals, raised = dict(policy), self._totals(policy), True
        while raised:
            raised = False
            for tied in self._visited(policy):
                for field in self.fields:
                    before = layers[tied[0]]
                    if (higher := self.step(tied[0], before, field, up=True)) is None:
                        continue
                    tried = totals + self._cell(tied, higher) - self._cell(tied, before)
                    layers |= dict.fromkeys(tied, higher)
                    if self._may_fit(tried) and self.allows(BitPolicy(layers, policy.scheme)):
                        totals, raised = tried, True
                    else:
                        layers |= dict.fromkeys(tied, before)
        return BitPolicy(layers, policy.scheme)

    def decrease(self, policy: BitPolicy) -> BitPolicy:
        """Fits a policy to the budget by HAQ's sequential decrease (arXiv:1811.08886, section 3.4).

        The order is that of HAQ's public code: it visits layers from the last to the first, activations before weights,
        and lowers each by one candidate, over and over, until all limits hold. Tied layers are lowered together, in the
        place of their first. A policy that fits is returned unchanged. Where costs do not fall with the widths, this
        may end at the lowest widths without a fit; then it returns the cheapest policy.
        """
        if self.allows(policy):
            return policy
        layers, totals, lowered = dict(policy), self._totals(policy), True
        last_first = self._visited(policy)[::-1]
        while lowered:
            lowered = False
            for tied in last_first:
                for field in reversed(self.fields):
                    before = layers[tied[0]]
                    if (lower := self.step(tied[0], before, field, up=False)) is None:
                        continue
                    layers |= dict.fromkeys(tied, lower)
                    lowered = True
                    totals = totals + self._cell(tied, lower) - self._cell(tied, before)
                    if self._may_fit(totals) and self.allows(candidate := BitPolicy(layers, policy.scheme)):
                        return candidate
        return self._fallback

    def _visited(self, policy: BitPolicy) -> list[tuple[str, ...]]:
        """Returns the decisions in the policy's order of layers."""
        return [self._led[name] for name in policy if name in self._led]

    def cost(self, layers: Sequence[str], pair: LayerBits, field: str) -> float:
        """Returns what the layers of a decision cost together, in a metric that is a sum over layers.

        Args:
            layers: One of `decisions`.
            pair: Their widths.
            field: Field of the metric.
        """
        return sum(self.table.layer_cost(name, pair, field) for name in layers)

    def _cell(self, layers: tuple[str, ...], pair: LayerBits) -> Costs:
        """Returns the cost of layers in units of the limits on sums over layers, `(limits,)`."""
        key = layers, pair
        if key not in self._cells:
            self._cells[key] = np.array([self.cost(layers, pair, c.field) / c.limit for c in self._sums])
        return self._cells[key]

    def _totals(self, policy: BitPolicy) -> Costs:
        totals: Costs = np.sum([self._cell((name,), pair) for name, pair in policy.items()], axis=0)
        return totals

    def _may_fit(self, totals: Costs) -> bool:
        """Whether running totals, with their rounding errors, may meet the limits; the table then decides."""
        return bool((totals <= 1 + _ROUNDING).all())
