"""From a continuous action to a width and back; the only place that knows the mapping."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["action_of", "width_of"]


def width_of(action: float, widths: Sequence[int]) -> int:
    """Maps an action to a candidate width.

    HAQ, arXiv:1811.08886, eq. 3: b = round(b_min − 0.5 + a·(b_max − b_min + 1)) with a in [0, 1]; actions here are in
    [−1, 1], as stable-baselines3 recommends, so a = (action + 1)/2. The result is then moved to the nearest candidate;
    on a tie, to the lower one.

    Args:
        action: In [−1, 1]; values outside are clipped.
        widths: Candidates, ascending.

    Examples:
        >>> [width_of(action, (2, 3, 4, 8)) for action in (-1.0, 0.0, 1.0)]
        [2, 4, 8]
    """
    low, high = widths[0], widths[-1]
    share = (min(max(action, -1.0), 1.0) + 1) / 2
    exact = min(max(round(low - 0.5 + share * (high - low + 1)), low), high)
    return min(widths, key=lambda width: (abs(width - exact), width))


def action_of(width: int, widths: Sequence[int]) -> float:
    """Returns the middle of the actions that eq. 3 maps to `width`: `width_of(action_of(w, ws), ws) == w`."""
    low, high = widths[0], widths[-1]
    return 2 * (width - low + 0.5) / (high - low + 1) - 1
