"""The policy that a search chose, and the networks it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from haq.io.validation import restored
from haq.policy import BitPolicy, check_width
from haq.runs.trial import Cost, finite
from haq.scores import Score

__all__ = ["Baseline", "BaselineName", "Best"]


@dataclass(frozen=True)
class Baseline:
    """A network to compare with; an entry of `baselines.json`.

    Attributes:
        bits: The uniform width of its weights (pinned layers apart), `None` for the float network.
        score: On the validation images, after calibration and without fine-tuning.
        cost: As the cost table prices it.
        a_bits: The uniform width of its activations; `None` for floating point.
        policy: Widths of every layer, pinned ones too; `None` in older run folders.
    """

    bits: int | None
    score: Score
    cost: Cost
    a_bits: int | None = None
    policy: BitPolicy | None = None

    @property
    def widths(self) -> str:
        """The widths for people: `4`, or `4/2` where those of activations differ."""
        return f"{self.bits}" if self.a_bits in (None, self.bits) else f"{self.bits}/{self.a_bits}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        content = {"bits": self.bits, "a_bits": self.a_bits, "score": self.score.to_dict(), "cost": dict(self.cost)}
        return content if self.policy is None else {**content, "policy": self.policy.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Baseline:
        """Restores the result of `to_dict`."""
        bits, a_bits = check_width(data["bits"], "bits"), check_width(data.get("a_bits", data["bits"]), "a_bits")
        policy = BitPolicy.from_dict(data["policy"]) if "policy" in data else None
        values = {"bits": bits, "a_bits": a_bits, "score": Score.from_dict(data["score"]), "policy": policy}
        return restored(cls, {**values, "cost": finite(data["cost"])})


BaselineName = Literal["float", "uniform8", "uniform_same_budget"]


@dataclass(frozen=True)
class Best:
    """The chosen policy and the networks it is compared with: `best.json`.

    Attributes:
        policy: The per-layer widths.
        top1: On the validation images, after fine-tuning, or before it where that was better.
        loss: On the validation images, of the same network.
        test_top1: On the test images, which are used for nothing else; `None` when the search was interrupted before.
        cost: Metric field → cost, from the cost table.
        constraints: Metric field → absolute limit.
        baselines: Name → `{"test_top1": ..., "cost": ...}`, or `None` where no uniform width fits the budget.
        epochs: Epochs that `haq finetune` trained it further, unlike the baselines.
    """

    policy: BitPolicy
    top1: float
    loss: float
    test_top1: float | None
    cost: Cost
    constraints: Mapping[str, float]
    baselines: Mapping[BaselineName, Mapping[str, Any] | None]
    epochs: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {
            "policy": self.policy.widths(),
            "score": {"top1": self.top1, "loss": self.loss},
            "test_top1": self.test_top1,
            "cost": dict(self.cost),
            "constraints": dict(self.constraints),
            "baselines": {name: dict(value) if value else None for name, value in self.baselines.items()},
            **({"epochs": self.epochs} if self.epochs else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Best:
        """Restores the result of `to_dict`."""
        rest = {key: data[key] for key in ("test_top1", "cost", "constraints", "baselines")}
        for baseline in filter(None, data["baselines"].values()):
            restored(_Tested, baseline)
            finite(baseline["cost"])
        finite(data["cost"]), finite(data["constraints"])
        values = {"policy": BitPolicy.from_dict(data["policy"]), **data["score"], "epochs": data.get("epochs", 0)}
        return restored(cls, {**values, **rest})


@dataclass(frozen=True)
class _Tested:
    test_top1: float | None
    cost: Cost
