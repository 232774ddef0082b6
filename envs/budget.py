"""Budgets on a policy's cost, and HAQ's way of meeting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from haq.constraints import Constraint, format_cost
from haq.errors import ConstraintError
from haq.hwmodels import CostTable
from haq.policy import BitPolicy, LayerBits

__all__ = ["Budget"]


class Budget:
    """One or more upper limits that a policy must meet all at once.

    Args:
        table: Prices every layer at every candidate width, and at the pinned and the uniform 8-bit widths.
        constraints: Limits; relative ones are fractions of the uniform 8-bit network's cost.
        bits: Candidate widths, ascending.
        pinned: Layers whose widths are not up for search.
        scheme: What realises the widths; policies carry its name.
        weights_only: Whether activations stay in floating point, so that only widths of weights are chosen.

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
    ) -> None:
        self.table, self.bits, self.scheme, self.weights_only = table, tuple(bits), scheme, weights_only
        self.pinned = {name: LayerBits(b.w_bits, None) if weights_only else b for name, b in pinned.items()}
        self.fields = ("w_bits",) if weights_only else ("w_bits", "a_bits")
        uniform8 = table.cost(self._policy(8, {}))
        self.constraints = tuple(constraint.resolve(uniform8[constraint.field]) for constraint in constraints)
        smallest = table.cost(self.uniform(self.bits[0]))
        for constraint in self.constraints:
            reachable = smallest[constraint.field]
            if reachable > constraint.limit:
                raise ConstraintError(
                    f"no policy meets {constraint}: the smallest reachable {constraint.metric} is "
                    f"{format_cost(constraint.field, reachable)}, with every free layer at {self.bits[0]} bits; "
                    "raise the limit or allow smaller --bits"
                )

    def uniform(self, bits: int) -> BitPolicy:
        """Returns the policy with `bits` everywhere but in pinned layers."""
        return self._policy(bits, self.pinned)

    def _policy(self, bits: int, pinned: Mapping[str, LayerBits]) -> BitPolicy:
        policy = BitPolicy.uniform(list(self.table.layers), bits, pinned).with_scheme(self.scheme)
        return policy.without_activations() if self.weights_only else policy

    def allows(self, policy: BitPolicy) -> bool:
        """Whether the policy meets every limit."""
        cost = self.table.cost(policy)
        return all(cost[constraint.field] <= constraint.limit for constraint in self.constraints)

    def largest_uniform(self) -> int | None:
        """Returns the widest candidate whose uniform policy fits, or `None` if only mixed policies do."""
        return next((width for width in reversed(self.bits) if self.allows(self.uniform(width))), None)

    def spend(self, policy: BitPolicy) -> BitPolicy:
        """Raises widths of a policy that fits for as long as it still fits.

        Layers are visited from the first to the last, weights before activations, one candidate width each, over and
        over. Sequential decrease lowers widths that save nothing, such as the weights of a layer that waits for its
        activations; this gives them back.
        """
        higher = dict(zip(self.bits, self.bits[1:], strict=False))
        layers, raised = dict(policy), True
        while raised:
            raised = False
            for name in (name for name in layers if name not in self.pinned):
                for field in self.fields:
                    before = layers[name]
                    if getattr(before, field) in higher:
                        layers[name] = replace(before, **{field: higher[getattr(before, field)]})
                        if self.allows(BitPolicy(layers, policy.scheme)):
                            raised = True
                        else:
                            layers[name] = before
        return BitPolicy(layers, policy.scheme)

    def decrease(self, policy: BitPolicy) -> BitPolicy:
        """Fits a policy to the budget by HAQ's sequential decrease (arXiv:1811.08886, section 3.4).

        Layers are visited from the last to the first, weights before activations, and lowered by one candidate width
        each, over and over, until all limits hold. A policy that fits comes back unchanged.
        """
        lower = dict(zip(self.bits[1:], self.bits, strict=False))
        layers = dict(policy)
        free = [name for name in reversed(layers) if name not in self.pinned]
        candidate = policy
        while not self.allows(candidate):
            before = candidate
            for name in free:
                for field in self.fields:
                    width = getattr(layers[name], field)
                    if width in lower:
                        layers[name] = replace(layers[name], **{field: lower[width]})
                        candidate = BitPolicy(layers, policy.scheme)
                        if self.allows(candidate):
                            return candidate
            assert candidate != before, "the smallest policy fits, so some width can still be lowered"
        return candidate
