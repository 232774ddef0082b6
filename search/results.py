"""The result of a search for use in programs: a run folder that can be queried, exported and reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from haq.policy import BitPolicy
from haq.registry import EXPORTS, REPORTS
from haq.runs import Best, RunFolder, Trial
from haq.runs.archive import absolute_limits, best_of, pareto_front, within
from haq.runs.relocation import Named

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

__all__ = ["Result"]


class Result(RunFolder):
    """The run folder of a search.

    Args:
        path: The folder.
        named: What the run folder does not contain: objects that it was given, and new places of files.

    Examples:
        ```python
        result = Result.open(Path("runs/digits-resnet-edge-latency-10ms"))
        result.best.policy["conv1"].w_bits
        result.to_dataframe().sort_values("top1")
        result.export("onnx", "net.onnx")
        ```
    """

    def __init__(self, path: Path, named: Named | None = None) -> None:
        super().__init__(path)
        self._named = named

    @property
    def best(self) -> Best:
        """The chosen policy, its scores and costs; raises `ConfigError` if nothing has been found yet."""
        return self.read_best()

    @property
    def trials(self) -> list[Trial]:
        """Every policy that was scored, in the order in which the trials ended."""
        return self.read_trials()

    @property
    def front(self) -> list[Trial]:
        """The Pareto front: the trials that no other trial beats in the objective and all costs at once."""
        return self.read_front()

    def to_dataframe(self) -> pd.DataFrame:
        """Returns a row for each trial, with the trial's number as its index.

        Columns: `origin`, `objective`, `top1`, `loss`, `fidelity`, `steps` (of the longest-trained score), a column for
        each cost (`latency_ms`, ...), `w_bits` and `a_bits` (means over the quantized layers), `elapsed_s`, `error`,
        `front` and `chosen` (booleans) and `policy` (a `BitPolicy`).
        """
        import pandas as pd

        front = {trial.number for trial in pareto_front(self.trials)}
        chosen = self._chosen()
        rows = [_row(trial, front, chosen) for trial in self.trials]
        return pd.DataFrame(rows).set_index("trial") if rows else pd.DataFrame()

    def _chosen(self) -> BitPolicy | None:
        if self.finished:
            return self.best.policy
        config = self.read_config()
        limits = absolute_limits(config, self.read_baselines().get("uniform8")) if self.trials else {}
        best = best_of(within(self.trials, limits), config.cost_fields)
        return best.policy if best else None

    def export(self, format: str, path: str | Path | None = None, named: Named | None = None) -> str | Path:
        """Writes the result for another program; see `haq.exports.Format.export`.

        Args:
            format: Such as `json`, `csv`, `onnx`, `qonnx` or `packed`.
            path: File to write; by default text is returned, and a network is written into the run folder.
            named: Where the model, weights and data are now, if not where the search found them.

        Returns:
            The text, or the path of the file if one was written.
        """
        form = EXPORTS.resolve(format)
        written: str | Path = form.export(self, Path(path) if path is not None else None, named=named or self._named)
        return written

    def report(self, path: str | Path | None = None) -> Path:
        """Writes the HTML page, by default `report.html` in the run folder, and returns its path."""
        page = Path(path) if path is not None else self.page
        REPORTS["html"](self, page)
        return page

    def network(self, named: Named | None = None) -> nn.Module:
        """Returns the chosen network, fake-quantized, in evaluation mode; opens the model and data that the run names.

        Args:
            named: As for `export`.

        Raises:
            HaqError: The search has not ended, or something that it names is missing or has changed.
        """
        from haq.quant.run_network import open_quantized

        return open_quantized(self, self.best.policy, None, named or self._named).network


def _row(trial: Trial, front: set[int], chosen: BitPolicy | None) -> dict[str, Any]:
    score = trial.score
    return {
        "trial": trial.number,
        "origin": trial.origin,
        "objective": trial.objective,
        "top1": score.top1 if score else None,
        "loss": score.loss if score else None,
        "fidelity": score.fidelity if score else None,
        "steps": score.steps if score else None,
        **trial.cost,
        "w_bits": _mean(bits.w_bits for bits in trial.policy.values()),
        "a_bits": _mean(bits.a_bits for bits in trial.policy.values()),
        "elapsed_s": trial.elapsed_s,
        "error": trial.error,
        "front": trial.number in front,
        "chosen": trial.policy == chosen,
        "policy": trial.policy,
    }


def _mean(widths: Iterator[int | None]) -> float | None:
    quantized = [width for width in widths if width is not None]
    return fmean(quantized) if quantized else None
