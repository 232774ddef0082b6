"""What a policy should score, learnt from all that were scored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import BayesianRidge

from haq.search.agents.lattice import Floats, Indices
from haq.search.agents.projection import Projection

__all__ = ["Predictor"]

_CAUTION = 0.5  # standard deviations below the prediction that a candidate may hope for
_SMALLEST = 1e-6


class Predictor:
    """Predicts log(loss): the sum of the layers' penalties, corrected by a Bayesian ridge regression.

    The sum says how a policy should do if layers did not interact; the regression learns by what factor each layer's
    share of it misleads, log(loss) − log(Σ penalty) over the square roots of the penalties.

    Args:
        projection: Knows the penalties.
        indices: Policies that were scored, `(P, F)`.
        losses: Of them, `(P,)`, positive.

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
