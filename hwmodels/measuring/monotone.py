"""Measured costs made monotone: noise must not make a wider layer cheaper."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

__all__ = ["monotone"]

_ROUNDS = 200
_TOLERANCE = 1e-9


def monotone(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the least-squares fit that never falls along any axis, same shape.

    Along one axis this is isotonic regression by pooling adjacent violators; the fit along all axes is the projection
    onto the intersection of those cones, by Dykstra's alternating projections.

    Args:
        costs: Finite costs, of any number of dimensions.

    References:
        Dykstra, Robertson: An Algorithm for Isotonic Regression for Two or More Independent Variables, The Annals of
        Statistics 10(3), 1982.

    Examples:
        >>> monotone(np.array([[1.0, 3.0], [2.0, 2.0]]))
        array([[1. , 2.5],
               [2. , 2.5]])
    """
    fitted = np.asarray(costs, np.float64)
    corrections = [np.zeros_like(fitted) for _ in range(fitted.ndim)]
    scale = max(float(np.abs(fitted).max(initial=0.0)), np.finfo(float).tiny)
    for _ in range(_ROUNDS):
        before = fitted
        for axis in range(fitted.ndim):
            target = fitted - corrections[axis]
            fitted = np.apply_along_axis(_isotonic, axis, target)
            corrections[axis] = fitted - target
        if np.abs(fitted - before).max(initial=0.0) <= _TOLERANCE * scale:
            break
    for axis in range(fitted.ndim):  # the remaining violations are rounding errors
        fitted = np.maximum.accumulate(fitted, axis)
    return fitted


def _isotonic(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = isotonic_regression(values).x
    return result
