"""Predicts the loss of a policy from all scores so far."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import BayesianRidge

from haq.search.agents.lattice import Floats, Indices
from haq.search.agents.projection import Projection

__all__ = ["Predictor"]

_CAUTION = 0.5  # standard deviations between the prediction and the lowest plausible value
_SMALLEST = 1e-6


class Predictor:
    """Predicts log(loss): the log of the sum of penalties, corrected by a Bayesian ridge regression.

    The sum would predict the loss if layers did not interact. The regression fits the rest, log(loss) − log(Σ penalty),
    as a linear function of the square roots of the penalties.

    Args:
        projection: Has the penalties.
        indices: Policies that were scored, `(P, F)`.
        losses: Their losses, `(P,)`, positive.

    References:
        MacKay: Bayesian Interpolation, Neural Computation 4(3), 1992, for the regression.
    """

    def __init__(self, projection: Projection, indices: Indices, losses: npt.ArrayLike) -> None:
        self._penalties = projection.penalties
        features, prior = self._features(indices)
        self._model = BayesianRidge().fit(features, np.log(np.maximum(losses, _SMALLEST)) - prior)

    def hope(self, indices: Indices) -> Floats:
        """Returns the lowest plausible log(loss), `(P,)`: the prediction less a share of its standard deviation."""
        features, prior = self._features(indices)
        mean, deviation = self._model.predict(features, return_std=True)
        hope: Floats = prior + mean - _CAUTION * deviation
        return hope

    def _features(self, indices: Indices) -> tuple[Floats, Floats]:
        """Returns the root of each layer's penalty in units of the mean, `(P, F)`, and log of their sum, `(P,)`."""
        penalties = self._penalties[np.arange(indices.shape[1]), indices]
        return np.sqrt(penalties / self._penalties.mean()), np.log(penalties.sum(axis=1) + _SMALLEST)
