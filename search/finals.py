"""After the search: the best policies and the uniform one are fine-tuned alike, and the winner is tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from haq.data import Samples
from haq.policy import BitPolicy
from haq.quant.evaluation import evaluate
from haq.scores import Score
from haq.search.streams import gather
from haq.search.workload import Workload, worker_device

__all__ = ["Finalist", "finetune_all", "test_all"]

_REPORTS = 20  # progress reports of one fine-tuning run


@dataclass(frozen=True)
class Finalist:
    """A network that was fine-tuned to the end.

    Attributes:
        policy: Its widths.
        state: Its weights and scales.
        score: On the validation images.
    """

    policy: BitPolicy
    state: Mapping[str, Any]
    score: Score

    def network(self, workload: Workload) -> nn.Module:
        """Rebuilds the fine-tuned network."""
        return workload.restored(self.policy, self.state)


def finetune_all(
    workload: Workload,
    policies: Mapping[str, BitPolicy],
    steps: int,
    progress: Callable[[int, int], None],
    gpus: float = 0.0,
    on_loss: Callable[[str, Exception], None] | None = None,
) -> dict[str, Finalist]:
    """Fine-tunes every policy for `steps` steps, in parallel on Ray's workers; what fails is tried once more.

    Args:
        workload: What all share.
        policies: Name → policy.
        steps: Fine-tuning steps for each.
        progress: Called with steps taken and steps in all.
        gpus: That each takes.
        on_loss: Called with the name of a policy that has no result, and why; without it, that is raised.
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming", max_retries=1, retry_exceptions=True)(
        _finetune
    )
    shared = ray.put(workload)
    streams: dict[Any, str] = {task.remote(shared, policy, steps): name for name, policy in policies.items()}
    return gather(streams, lambda taken: progress(sum(taken.values()), steps * len(policies)), on_loss)


def _finetune(workload: Workload, policy: BitPolicy, steps: int) -> Iterator[int | Finalist]:
    """Yields the number of steps taken, time and again, and at last the network."""
    torch.set_num_threads(1)
    model = workload.reconstructed(policy).to(worker_device())
    if steps:
        finetuning = workload.finetuning(model, steps)
        for part in range(1, _REPORTS + 1):
            finetuning.run(round(steps * part / _REPORTS) - finetuning.done)
            yield finetuning.done
    score = workload.score(model, "qat" if steps else "ptq", steps)
    yield Finalist(policy, model.cpu().state_dict(), score)


def test_all(
    networks: Mapping[str, nn.Module], test: Samples, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """Returns the top-1 of every network on the test images, in parallel on Ray's workers."""
    import ray

    task = ray.remote(num_cpus=1)(_test_top1)
    images = ray.put(test)
    names: dict[Any, str] = {task.remote(network, images): name for name, network in networks.items()}
    top1: dict[str, float] = {}
    pending = list(names)
    while pending:
        finished, pending = ray.wait(pending, num_returns=1)
        ready = finished[0]
        top1[names[ready]] = ray.get(ready)
        progress(len(top1), len(networks))
    return {name: top1[name] for name in networks}


def _test_top1(network: nn.Module, test: Samples) -> float:
    torch.set_num_threads(1)
    return evaluate(network, test, "float").top1
