"""Fine-tuning the network of a run: its result, its checkpoint, and its errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from haq.errors import ConfigError, HaqError
from haq.policy import BitPolicy, LayerBits
from haq.progress import Silent
from haq.quant.evaluation import evaluate
from haq.report import summarize
from haq.report.summary_text import comparison, verdict
from haq.runs import RunFolder
from haq.search import finetune, resume, resume_finetune
from haq.search.finetuning import Training
from haq.search.problem import pose
from haq.search.results import Result
from haq.search.scoring import reference_of


class Killed(Exception):
    """Simulates a machine that dies."""


class Deadly(Silent):
    """Dies at the given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, task: str, done: int, total: int, note: str = "") -> None:
        if task == "fine-tune" and done >= self.step:
            raise Killed


@pytest.fixture(scope="module")
def trained(finished: Result, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return finetune(finished, 3, tmp_path_factory.mktemp("trained") / "run", batch=16, lr=1e-3)


def test_the_result_is_a_run_like_any_other(finished: Result, trained: Result) -> None:
    assert trained.finished
    assert trained.best.epochs == 3
    assert trained.best.policy == finished.best.policy
    assert trained.trials == finished.trials
    assert trained.best.baselines == finished.best.baselines
    assert any(trained.tensorboard.glob("events.out.tfevents*"))


def test_the_reported_accuracy_is_reproduced_from_the_file(trained: Result) -> None:
    data = pose(trained.read_config(), Silent()).data
    torch.set_num_threads(1)
    assert evaluate(trained.network(), data.test, "qat").top1 == trained.best.test_top1
    score = evaluate(trained.network(), data.val, "qat")
    assert (score.top1, score.loss) == pytest.approx((trained.best.top1, trained.best.loss))


def test_the_result_is_never_worse_than_its_start_on_the_validation_samples(finished: Result, trained: Result) -> None:
    assert summarize(finished).ranked_by == "kl"
    problem = pose(trained.read_config(), Silent())
    reference = reference_of(problem.model, problem.data.val, Training.load(trained.training).seed)
    before, after = (reference.divergence(run.network()) for run in (finished, trained))
    assert after <= before * (1 + 1e-6)


def test_the_report_says_that_training_was_unequal(trained: Result) -> None:
    summary = summarize(trained)
    assert "trained on for 3 epochs" in comparison(summary).notes[0]
    assert summary.uniform_bits is None or "after 3 epochs against 4 steps of fine-tuning" in verdict(summary)


@pytest.mark.parametrize("step", [4, 8, 18])
def test_a_killed_fine_tuning_ends_with_the_same_weights(
    finished: Result, trained: Result, tmp_path: Path, step: int
) -> None:
    """Eight steps per epoch: killed before the first checkpoint, at the end of an epoch, in the middle of another."""
    with pytest.raises(Killed):
        finetune(finished, 3, tmp_path / "run", None, Deadly(step), batch=16, lr=1e-3)
    assert not RunFolder.open(tmp_path / "run").finished
    again = resume_finetune(tmp_path / "run")
    assert again.best == trained.best
    ours, theirs = (dict(run.network().named_parameters()) for run in (again, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    resume_finetune(tmp_path / "run")  # nothing is left to do


def test_labels_can_be_learnt_instead(finished: Result, trained: Result, tmp_path: Path) -> None:
    labelled = finetune(finished, 1, tmp_path / "run", batch=16, lr=1e-3, distill=False)
    assert labelled.finished
    assert Training.load(labelled.training) == Training(1, 1e-3, distill=False, batch=16)


def test_other_widths_are_calibrated_and_shown_as_a_trial(finished: Result, tmp_path: Path) -> None:
    names = list(finished.best.policy)
    policy = BitPolicy({name: LayerBits(2, 2) for name in names})
    (tmp_path / "bits.json").write_text(json.dumps(policy.to_dict()))
    run = finetune(finished, 1, tmp_path / "run", tmp_path / "bits.json", batch=16)
    assert run.best.policy == policy
    assert run.best.cost["latency_ms"] == pytest.approx(min(t.cost["latency_ms"] or 9e9 for t in run.trials))
    summary = summarize(run)
    chosen = next(trial for trial in run.trials if trial.number == summary.chosen)
    assert chosen.policy == policy
    assert len({trial.number for trial in run.trials}) == len(run.trials)


def test_a_policy_over_the_budget_is_refused(finished: Result, tmp_path: Path) -> None:
    policy = BitPolicy({name: LayerBits(8, 8) for name in finished.best.policy})
    with pytest.raises(HaqError, match=r"the policy costs .*, but the budget of the run is latency ≤ .*; give a"):
        finetune(finished, 1, tmp_path / "run", policy)
    with pytest.raises(HaqError, match="layer 'other' of the policy is not in"):
        finetune(finished, 1, tmp_path / "run", BitPolicy({"other": LayerBits(2, 2)}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"epochs": 1, "lr": 0.0}, "--lr 0.0: must be more than 0"),
        ({"epochs": 1, "lr": float("nan")}, "--lr nan: must be more than 0"),
        ({"epochs": 1, "batch": 0}, "--batch 0: must be"),
        ({"epochs": 1, "seed": -1}, "--seed -1: must be"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Training(**options)  # type: ignore[arg-type]


def test_a_run_that_is_not_a_fine_tuning_is_not_resumed_as_one(finished: Result) -> None:
    with pytest.raises(ConfigError, match="has no finetune.yaml, so it is not a fine-tuning"):
        resume_finetune(finished)


def test_a_fine_tuning_is_not_resumed_as_a_search(trained: Result) -> None:
    with pytest.raises(ConfigError, match="is a fine-tuning; resume it with `haq finetune --resume"):
        resume(trained)


def test_a_damaged_checkpoint_is_reported(finished: Result, trained: Result, tmp_path: Path) -> None:
    run = RunFolder.open(Path(shutil.copytree(trained.path, tmp_path / "run")))
    run.write_best(replace(run.read_best(), test_top1=None))
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-500])
    with pytest.raises(ConfigError, match=r"cannot read .*checkpoint.pt: .*; remove it to start from the beginning"):
        resume_finetune(run)


def test_a_loss_that_is_nan_is_reported_with_a_fix(finished: Result, tmp_path: Path) -> None:
    broken = RunFolder.open(Path(shutil.copytree(finished.path, tmp_path / "broken")))
    content = torch.load(broken.model, weights_only=True)
    content["state_dict"]["linear.bias"][:] = torch.nan
    torch.save(content, broken.model)
    broken.seal(broken.model)
    with pytest.raises(HaqError, match=r"the loss became nan after 8 steps; give a smaller --lr"):
        finetune(broken, 5, tmp_path / "run", batch=16)
    assert not RunFolder.open(tmp_path / "run").finished
