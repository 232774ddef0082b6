"""What orders policies: their divergence from the float network on validation samples, or on mixed ones.

The policies of a search are quantized by calibration alone and compared with the float network on several sets of
samples. Printed is Spearman's rank correlation of each set with the divergence on 2,000 other test images.

    python benchmarks/ranking.py runs/RUN [--policies 24]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scipy.stats import spearmanr

from haq.data import Samples
from haq.progress import Silent
from haq.quant.divergence import Reference, mixed
from haq.quant.evaluation import logits_of
from haq.quant.preparation import prepare
from haq.runs import RunFolder
from haq.search.problem import pose
from haq.search.workload import calibrated

SIZES = (128, 256, 384)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--policies", type=int, default=24)
    options = parser.parse_args()
    folder = RunFolder.open(options.run)
    problem = pose(folder.read_config(), Silent(), folder)
    model, val, test = problem.model, problem.data.val, problem.data.test
    sets: dict[str, Samples] = {}
    for count in SIZES:
        sets[f"{count} validation images"] = val.subset(range(count))
        sets[f"{count} other validation images"] = val.subset(range(len(val) - count, len(val)))
        sets[f"{count} mixed validation images"] = mixed(val, count, 0)
        sets[f"{count} test images"] = test.subset(range(2000, 2000 + count))
    held_out = "2,000 other test images"
    sets[held_out] = test.subset(range(2000))
    references = {name: Reference(samples, logits_of(model, samples)) for name, samples in sets.items()}
    calibration = calibrated(problem, problem.table.w_bits)
    found: dict[str, list[float]] = {name: [] for name in sets}
    trials = [trial for trial in folder.read_trials() if trial.origin != "uniform"][: options.policies]
    for trial in trials:
        network = prepare(model, trial.policy, calibration=calibration)
        for name, reference in references.items():
            found[name].append(reference.divergence(network))
    print(f"{len(trials)} policies; {held_out}: {min(found[held_out]):.3f} to {max(found[held_out]):.3f} nats\n")
    print("| compared on | rank correlation |\n|---|---|")
    for name in sets:
        if name != held_out:
            print(f"| {name} | {spearmanr(found[name], found[held_out]).statistic:.2f} |")


if __name__ == "__main__":
    main()
