"""The search: agent, Ray Tune searcher and trainable, archive, and the run from options to run folder."""

from haq.search.observer import Observer, Silent
from haq.search.run import resume, run

__all__ = ["Observer", "Silent", "resume", "run"]
