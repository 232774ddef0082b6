"""Post-training passes by name, run in the order in which they build on each other."""

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
"""Passes that take long, and therefore report progress."""


def folds(passes: Iterable[str]) -> bool:
    """Whether one of these passes needs folded batch norms, which cannot be fine-tuned."""
    return bool(set(passes) - {"sequential"})


def check_applicable(passes: Iterable[str], scheme: Scheme, model: nn.Module, sample: Tensor) -> None:
    """Refuses passes that would fail on this network, before hours are spent on a search.

    Args:
        passes: Names from `PASSES`.
        scheme: Quantization scheme.
        model: The float network.
        sample: One input.

    Raises:
        ConfigError: AdaRound does not know the scheme's grids.
        ModelError: A pass needs the network's graph, but the network cannot be traced.
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
        trace_graph(model, f"--ptq {','.join(named)}", sample, any_batch=True)


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
    """Quantizes a network after training, with passes that reduce the loss of accuracy.

    Layers are equalised (`cle`), and calibrated quantizers are inserted. Then the weights are rounded again, for inputs
    from the preceding quantized layers (`sequential`) and as gradients choose (`adaround`). Biases are corrected for
    the mean error of rounding weights (`bias-analytic`, without data), or of weights and activations together (`bias`,
    with the batches); `bias` replaces the analytic correction.

    Args:
        model: The float network, with its batch norms; it is not changed.
        policy: Widths of the layers to quantize.
        scheme: Quantization scheme; by default the one that the policy names.
        batches: Calibration inputs, each `(N, C, H, W)`; a few hundred images in total.
        passes: Names from `PASSES`, in any order.
        seed: Seed of AdaRound.
        progress: Called with the layers or blocks done and their total, during each pass in `REPORTED`.
        steps: Steps of AdaRound per block.

    Returns:
        The quantized network in evaluation mode; batch norms are folded if there is any pass other than `sequential`.

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
    report = progress or (lambda done, total: None)
    if "sequential" in chosen and not compensate_in_sequence(quantized, folded, inputs, report):
        logger.warning(
            "layers are rounded independently: the network does not keep its samples separate along the first axis"
        )
    if "adaround" in chosen:
        quantized = adaround(quantized, folded, inputs, steps, seed, progress)
    if "bias-analytic" in chosen:
        quantized = correct_bias_analytic(quantized, model, sample[:1])
    if "bias" in chosen:
        quantized = correct_bias(quantized, folded, inputs)
    return quantized
