"""The numbers of a run that a report shows; the terminal and the HTML page only lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from haq.layers.rest import Rest
from haq.policy import Width
from haq.runs import BaselineName, Cost
from haq.scores import Fidelity, RankBy, Score

__all__ = ["LayerWidths", "Level", "Network", "Point", "Summary"]


@dataclass(frozen=True, order=True)
class Level:
    """How far a network was trained before it was scored; scores compare only at the same level."""

    steps: int
    fidelity: Fidelity

    @classmethod
    def of(cls, score: Score) -> Level:
        """Returns the level of a score."""
        return cls(score.steps, score.fidelity)


@dataclass(frozen=True)
class Network:
    """A row of the comparison.

    Attributes:
        key: Which network this is.
        name: Its name for people.
        test_top1: On the test images; `None` before the search has ended. Of the uniform networks, only the one at the
            same budget was fine-tuned like ours.
        val_top1: On the validation images, before fine-tuning.
        cost: Metric field → cost, from the cost table; empty where no network fits.
    """

    key: BaselineName | Literal["ours"]
    name: str
    test_top1: float | None
    val_top1: float | None
    cost: Cost


@dataclass(frozen=True)
class Point:
    """One validation score of one policy.

    Attributes:
        number: Number of the trial; `None` for a baseline.
        origin: Who proposed the policy.
        mean_bits: Mean width of weights and of activations over the quantized layers; `None` if there are none.
        level: How far the network was trained; points of different levels do not compare.
        top1: Fraction of correct answers.
        loss: `None` when the network diverged.
        kl: Divergence from the float network; `None` when the network diverged or it was not measured.
        cost: Metric field → cost, from the cost table.
    """

    number: int | None
    origin: str
    mean_bits: tuple[float | None, float | None]
    level: Level
    top1: float
    loss: float | None
    kl: float | None
    cost: Cost

    def quality(self, rank_by: RankBy) -> float | None:
        """Returns top-1, the loss or the divergence."""
        value: float | None = getattr(self, rank_by)
        return value


@dataclass(frozen=True)
class LayerWidths:
    """Widths of one layer, and its share of the whole network's latency (0–1) if a cost table gives it."""

    name: str
    w_bits: Width
    a_bits: Width
    latency_share: float | None


@dataclass(frozen=True)
class Summary:
    """A run, ready to be shown.

    All text is printable: control characters in the user's names are escaped, but markup is not.

    Attributes:
        name: Name of the run folder.
        model: As given to the search, like `data`, `hardware` and `scheme`.
        batch: Samples that each cost is for.
        constraints: For people, such as `latency ≤ 10.0 ms`.
        limits: Metric field → absolute limit.
        axis: Metric field that accuracy is drawn against.
        fields: Metric fields that the policies have costs of, those that the search was asked for first.
        trials_asked: Trials that the search was to run.
        trials_done: Trials that ended, including failed ones.
        failures: Reason and number of trials, most frequent first.
        policies_scored: Distinct policies with a score.
        elapsed_s: Wall time until the last trial ended.
        ranked_by: What the search optimised: top-1, the loss, or the divergence from the float network.
        finished: Whether the networks were compared on the test images.
        finetune_steps: Fine-tuning steps of ours and of the uniform network at the same budget before the comparison.
        epochs: Epochs that `haq finetune` trained ours further, unlike the others.
        networks: Float, uniform and ours, in this order.
        uniform_bits: Widths of the best uniform network that fits, such as `4` or `4/2`; `None` when none does.
        chosen: Trial of the best policy, or of the best so far.
        tuned_val_top1: Validation top-1 of the best policy after its final fine-tuning.
        points: Each trial's score after calibration and its last one.
        baselines: The uniform networks' scores after calibration.
        front: Of the longest-trained policies, those that no other beats in objective and every cost at once, the
            cheapest first.
        hypervolume: Volume that the front dominates, 0 to 1, and its metrics beside the objective; see
            `haq.runs.archive.hypervolume`.
        layers: Layers of the best policy.
        rest: What the network reads beside its layers; nothing in older run folders.
    """

    name: str
    model: str
    data: str
    hardware: str
    scheme: str
    batch: int
    constraints: tuple[str, ...]
    limits: Mapping[str, float]
    axis: str
    fields: tuple[str, ...]
    trials_asked: int
    trials_done: int
    failures: tuple[tuple[str, int], ...]
    policies_scored: int
    elapsed_s: float
    ranked_by: RankBy
    finished: bool
    finetune_steps: int
    epochs: int
    networks: tuple[Network, ...]
    uniform_bits: str | None
    chosen: int | None
    tuned_val_top1: float | None
    points: tuple[Point, ...]
    baselines: tuple[Point, ...]
    front: tuple[Point, ...]
    hypervolume: tuple[float, tuple[str, ...]] | None
    layers: tuple[LayerWidths, ...]
    rest: Rest = field(default_factory=Rest)
