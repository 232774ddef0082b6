"""The search: agent, Ray Tune searcher and trainable, archive, and the run from options to run folder.

from haq.search import run
result = run("resnet20", "npz:cifar10", "edge", ["latency=60%"], weights="resnet20.pt")
"""

from haq.progress import Observer, Silent
from haq.runs.relocation import Named
from haq.search.api import finetune, pick, resume, resume_finetune, run

__all__ = ["Named", "Observer", "Silent", "finetune", "pick", "resume", "resume_finetune", "run"]
