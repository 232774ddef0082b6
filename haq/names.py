"""Names of what is built in, for those who must answer at once, such as a shell that completes a word.

The registries that they belong to import PyTorch; a test holds both together.
"""

from __future__ import annotations

__all__ = ["AUTO_PASSES", "MODELS", "PASSES", "SCHEMES"]

MODELS = ("digits-resnet", "mobilenet-v1", "mobilenet-v2", "resnet20", "resnet32", "resnet56")
"""As `haq.models.list_models()`."""

SCHEMES = (
    "linear", "asymmetric", "power-of-two", "ristretto", "kmeans", "lqnets", "pact", "lsq", "qil", "nested", "dorefa",
    "wrpn", "abcnet", "inq", "twn", "ttq", "binaryconnect", "bwn", "bnn", "xnor", "fp16", "bf16", "hybrid",
)  # fmt: skip
"""As `haq.quant.schemes.list_schemes()`."""

PASSES = ("cle", "sequential", "adaround", "bias-analytic", "bias")
"""As `haq.quant.ptq.PASSES`: post-training passes, in the order in which they run."""

AUTO_PASSES = ("sequential", "adaround")
"""Those of `--ptq auto`; none of them needs labels."""
