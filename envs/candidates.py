"""The pairs of widths that a layer may have, and the steps from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from haq.policy import LayerBits

__all__ = ["Candidates", "Field"]

Field = Literal["w_bits", "a_bits"]


class Candidates:
    """Pairs of widths for a layer.

    Args:
        pairs: Ascending.
        fields: Widths that are chosen for a layer.
    """

    def __init__(self, pairs: Sequence[LayerBits], fields: Sequence[Field]) -> None:
        self.pairs, self._fields = tuple(pairs), tuple(fields)
        self._steps = {
            (pair, field, up): self._next(pair, field, 1 if up else -1)
            for pair in self.pairs
            for field in self._fields
            for up in (False, True)
        }

    def widths(self, field: Field, w_bits: int | None = None) -> tuple[int, ...]:
        """Returns the widths of `field`, ascending; with `w_bits`, only those of pairs with such weights."""
        pairs = self.pairs if w_bits is None else (pair for pair in self.pairs if pair.w_bits == w_bits)
        return tuple(sorted({getattr(pair, field) for pair in pairs} - {None}))

    def step(self, pair: LayerBits, field: Field, up: bool) -> LayerBits | None:
        """Returns the next pair whose width of `field` is wider or narrower, or `None`."""
        return self._steps.get((pair, field, up))

    def nearest(self, pair: LayerBits) -> LayerBits:
        """Returns the pair whose widths differ least, weights first; of two as near, the narrower one."""

        def distance(other: LayerBits) -> tuple[int, ...]:
            return tuple(abs((getattr(other, name) or 0) - (getattr(pair, name) or 0)) for name in self._fields)

        return pair if pair in self.pairs else min(self.pairs, key=distance)

    def _next(self, pair: LayerBits, field: Field, direction: int) -> LayerBits | None:
        """Returns the pair with the nearest width of `field` in a direction; the other stays or moves with it."""

        def distance(other: LayerBits) -> tuple[int, int]:
            moves = {name: direction * (getattr(other, name) - getattr(pair, name)) for name in self._fields}
            return moves[field], sum(moves.values())

        onward = [
            other
            for other in self.pairs
            if distance(other)[0] > 0
            and all(direction * (getattr(other, name) - getattr(pair, name)) >= 0 for name in self._fields)
        ]
        return min(onward, key=distance, default=None)
