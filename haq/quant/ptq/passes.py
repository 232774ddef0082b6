"""Post-training passes by name, put in the order in which they build on each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from haq.config import PASSES, checked_passes
from haq.errors import ConfigError, DataError
from haq.layers import reachable
from haq.policy import BitPolicy
from haq.quant.calibration import calibrate
from haq.quant.compensation import compensate_in_sequence
from haq.quant.folding import fold_batch_norm
from haq.quant.graph import trace_graph
from haq.quant.preparation import prepare
from haq.quant.ptq.adaround import STEPS, adaround
from haq.quant.ptq.bias_correction import correct_bias, correct_bias_analytic
from haq.quant.ptq.equalization import equalize
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes import Scheme, get_scheme

__all__ = ["PASSES", "REPORTED", "apply_passes", "check_applicable", "folds"]

logger = logging.getLogger(__name__)

REPORTED = ("sequential", "adaround")
"""Passes that take long, and say how far they are."""


def folds(passes: Iterable[str]) -> bool:
    """Whether one of these passes needs batch norms folded, which then cannot be fine-tuned."""
    return bool(set(passes) - {"sequential"})


def check_applicable(passes: Iterable[str], scheme: Scheme, model: nn.Module) -> None:
    """Refuses passes that would fail on this network, before hours are spent on it.

    Raises:
        ConfigError: AdaRound does not know the scheme's grids.
        ModelError: A pass needs the network's graph, and it cannot be traced.
    """
    named = list(passes)
    if "adaround" in named:
        made = scheme.weight_quantizer(torch.linspace(-1, 1, 64)[None], scheme.widths[-1])
        if not isinstance(made, UniformQuantizer):
            raise ConfigError(
                f"--ptq {','.join(named)} with --scheme {scheme.name}: AdaRound needs a uniform grid; use "
                "scheme linear, asymmetric or power-of-two, or leave adaround out"
            )
    if folds(named):
        trace_graph(model, f"--ptq {','.join(named)}")


def apply_passes(
    model: nn.Module,
    policy: BitPolicy,
    scheme: str | Scheme | None,
    batches: Iterable[Tensor],
    passes: Sequence[str],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    steps: int = STEPS,
) -> nn.Module:
    """Quantizes a network after training, with passes that make it lose less.

    Layers are equalised (`cle`), quantizers calibrated and put in; then the weights are rounded again, for the inputs
    that the quantized layers before give (`sequential`) and as gradients choose (`adaround`), and biases are corrected
    for the mean error of rounding (`bias-analytic`, without data) or for that of weights and activations together
    (`bias`, with the batches), which replaces what the analytic correction did.

    Args:
        model: The float network, with its batch norms; it is not changed.
        policy: Widths of the layers to quantize.
        scheme: What they are quantized with; by default the one that the policy names.
        batches: Calibration inputs, each `(N, C, H, W)`; a few hundred images in all.
        passes: Names from `PASSES`, in any order.
        seed: Of AdaRound.
        progress: Called with layers or blocks done and in all, during each of `REPORTED`.
        steps: Of AdaRound, for each block.

    Returns:
        The quantized network in evaluation mode; batch norms are folded if a pass but `sequential` is asked for.

    Raises:
        ConfigError: A pass is unknown, or the policy does not fit the model.
        DataError: There are no batches.
        ModelError: The network cannot be traced, or AdaRound does not know a layer's quantizer.
    """
    chosen = checked_passes(passes)
    inputs = list(batches)
    if not inputs:
        raise DataError("quantization after training needs calibration inputs, but there are no batches")
    sample = inputs[0]
    model = reachable(model, sample[:1])
    if "cle" in chosen:
        model = equalize(model, sample, fold=False)
    folded = fold_batch_norm(model, sample[:1]) if folds(chosen) else model
    used = scheme if isinstance(scheme, Scheme) else get_scheme(scheme or policy.scheme)
    widths = {width for bits in policy.values() for width in (bits.w_bits, bits.a_bits) if width is not None}
    quantized = prepare(folded, policy, used, calibrate(folded, inputs, widths, used)).eval()
    told = progress or (lambda done, total: None)
    if "sequential" in chosen and not compensate_in_sequence(quantized, folded, inputs, told):
        logger.warning("layers are rounded apart: the network does not keep its samples apart along their first axis")
    if "adaround" in chosen:
        quantized = adaround(quantized, folded, inputs, steps, seed, progress)
    if "bias-analytic" in chosen:
        quantized = correct_bias_analytic(quantized, model, sample[:1])
    if "bias" in chosen:
        quantized = correct_bias(quantized, folded, inputs)
    return quantized
