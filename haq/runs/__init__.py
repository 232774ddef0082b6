"""The run folder of a search, and the records in it."""

from haq.runs.folder import RunFolder
from haq.runs.identity import Identity
from haq.runs.outcome import Baseline, BaselineName, Best
from haq.runs.trial import Cost, Trial, ranked_by

__all__ = ["Baseline", "BaselineName", "Best", "Cost", "Identity", "RunFolder", "Trial", "ranked_by"]
