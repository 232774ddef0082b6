"""After the search: the best policies and their uniform rivals are fine-tuned in the same way, then tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from haq.data import Samples
from haq.policy import BitPolicy
from haq.quant.evaluation import evaluate
from haq.registry import LAYERS
from haq.scores import Score
from haq.search.tune.cluster import only_here
from haq.search.tune.ray_progress import gather, reporting
from haq.search.workload import Workload, worker_device
from haq.threads import cores

__all__ = ["Finalist", "finetune_all", "test_all"]

_REPORTS = 20  # progress reports of one fine-tuning run
_PASSES = 100  # in progress reports, the post-training passes of a finalist count as this many steps
_STEPS_A_LESSON = 4  # computing the float network's outputs for this many steps takes as long as one training step


@dataclass(frozen=True)
class Finalist:
    """A network at its best: fine-tuned for all steps, or as rounded if that scored better.

    Attributes:
        policy: Its widths.
        state: Its weights and scales.
        score: Its score on the validation images.
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
    """Fine-tunes every policy for `steps` steps, in parallel on Ray's workers; a policy that fails is retried once.

    If there is only rounding to do, threads of this process do it: the float network then runs once for all policies,
    and new processes would spend seconds on imports.

    Args:
        workload: What all policies share.
        policies: Name → policy.
        steps: Fine-tuning steps for each policy.
        progress: Called with the work done so far and the total.
        gpus: GPUs that each policy takes.
        on_loss: Called with the name of a policy that failed and its error; without it, the error is raised.

    Returns:
        Name → network, without the policies that failed.
    """
    if not steps and not workload.folded and only_here(gpus):
        return _here(workload, policies, progress, on_loss)
    import ray

    task = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming", max_retries=1, retry_exceptions=True)(
        _finetune
    )
    taught, total = steps // _STEPS_A_LESSON, (_PASSES + steps) * len(policies)

    def report(done: int) -> None:
        progress(done, taught + total)

    shared = ray.put(workload.prepared(steps, lambda share: report(int(share * taught))))
    streams: dict[Any, str] = {task.remote(shared, policy, steps): name for name, policy in policies.items()}
    return gather(streams, lambda taken: report(taught + sum(taken.values())), on_loss)


def _here(
    workload: Workload,
    policies: Mapping[str, BitPolicy],
    progress: Callable[[int, int], None],
    on_loss: Callable[[str, Exception], None] | None,
) -> dict[str, Finalist]:
    """Rounds all policies together on threads of this process, without fine-tuning."""

    def made(names: Sequence[str]) -> dict[str, Finalist]:
        chosen = [policies[name] for name in names]
        models = workload.rounded_together(chosen, lambda share: progress(int(_PASSES * share), _PASSES))
        return {
            name: Finalist(policy, model.state_dict(), workload.score(model, "ptq", threads=cores()))
            for name, policy, model in zip(names, chosen, models, strict=True)
        }

    try:
        return made([*policies])
    except Exception:  # perhaps only one policy fails, or memory was short
        found: dict[str, Finalist] = {}
        for name in policies:
            try:
                found |= made([name])
            except Exception as error:
                if on_loss is None:
                    raise
                on_loss(name, error)
        return found


def _finetune(workload: Workload, policy: BitPolicy, steps: int) -> Iterator[int | Finalist]:
    """Yields the work done so far, repeatedly, and finally the network: fine-tuned, or as rounded if that is better.

    A few steps can undo the gain of compensated rounding, because they move scales and weights that fit each other.
    """
    torch.set_num_threads(1)
    passed = yield from reporting(
        lambda report: workload.reconstructed(policy, lambda share: report(int(_PASSES * share)))
    )
    model = passed.to(worker_device())
    best = Finalist(policy, _kept(model), workload.score(model, "ptq"))
    if steps:
        finetuning = workload.finetuning(model, steps)
        for part in range(1, _REPORTS + 1):
            finetuning.run(round(steps * part / _REPORTS) - finetuning.done)
            yield _PASSES + finetuning.done
        score = workload.score(model, "qat", steps)
        if score.objective(workload.rank_by) >= best.score.objective(workload.rank_by):
            best = Finalist(policy, _kept(model), score)
    yield best


def _kept(model: nn.Module) -> Mapping[str, Any]:
    """Returns a copy of the state, on the CPU."""
    state = model.state_dict()
    return {key: value.cpu().clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


def test_all(
    networks: Mapping[str, nn.Module], test: Samples, progress: Callable[[int, int], None]
) -> dict[str, float]:
    """Computes the top-1 of every network on the test images, in parallel on Ray's workers.

    If all workers are on this machine, threads of this process do it, because processes would have to be started.

    Args:
        networks: Name → network.
        test: Test images.
        progress: Called with the number of networks done and their total.

    Returns:
        Name → top-1.
    """
    top1: dict[str, float] = {}
    if only_here():
        for name, network in networks.items():
            top1[name] = evaluate(network, test, "float", threads=cores()).top1
            progress(len(top1), len(networks))
        return top1
    import ray

    task = ray.remote(num_cpus=1)(_test_top1)
    images = ray.put(test)
    names: dict[Any, str] = {task.remote(network, images, LAYERS.added): name for name, network in networks.items()}
    pending = list(names)
    while pending:
        finished, pending = ray.wait(pending, num_returns=1)
        ready = finished[0]
        top1[names[ready]] = ray.get(ready)
        progress(len(top1), len(networks))
    return {name: top1[name] for name in networks}


def _test_top1(network: nn.Module, test: Samples, kinds: Mapping[str, Any]) -> float:
    LAYERS.adopt(kinds)  # the user's file, which registers them, is not run here
    torch.set_num_threads(1)
    return evaluate(network, test, "float").top1
