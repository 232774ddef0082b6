"""Quantization schemes: a name for a way to quantize weights and activations, with its source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from haq.errors import ConfigError, did_you_mean
from haq.io.user_code import guarded
from haq.io.validation import conforms, described
from haq.policy import check_width
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.uniform import uniform

__all__ = ["ALL_WIDTHS", "Factory", "Scheme", "linear_inputs"]

Made = TypeVar("Made")
Factory = Callable[..., Quantizer]
"""`(values, bits, *, granularity, **options) -> Quantizer`, which sets up a quantizer for values like these."""

ALL_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def linear_inputs(values: Tensor, bits: int, *, granularity: str = "tensor", clip: str = "mse") -> Quantizer:
    """Returns the quantizer of activations for schemes that only concern weights: that of `linear`.

    Args:
        values: Samples of activations, `(samples, n)`.
        bits: Width of a code.
        granularity: Which values share a scale.
        clip: Method of range setting; see `uniform`.
    """
    return uniform(values, bits, granularity=granularity, clip=clip)


@dataclass(frozen=True)
class Scheme:
    """A quantization scheme.

    Attributes:
        name: Name for `--scheme`.
        title: Title of the paper, or name of the practice.
        arxiv: Identifier of the paper; `None` if it is not on arXiv.
        equation: Equations or sections of the paper, and differences from it.
        weights: Makes the quantizer of a weight.
        inputs: Makes the quantizer of a layer's input; `None` leaves activations in floating point.
        widths: Supported widths of weights; other widths, such as those of pinned layers, are `linear`.
        input_widths: Supported widths of activations; other widths are `linear`.
        covers: What the paper quantizes; the rest is `linear`.
        trainable: What fine-tuning trains in addition to the weights.
        kernels: What can run the result: `bit-serial` (`haq.hwmodels.kernels.deployment`), `integer`
            (`haq.quant.convert`), third-party kernels with a codebook (`lookup`) or powers of two (`shift`), or only
            `float`.
        options: Options set by `with_options`.
    """

    name: str
    title: str
    arxiv: str | None
    equation: str
    weights: Factory
    inputs: Factory | None = linear_inputs
    widths: tuple[int, ...] = ALL_WIDTHS
    input_widths: tuple[int, ...] = ALL_WIDTHS
    covers: str = "weights"
    trainable: str = "nothing"
    kernels: tuple[str, ...] = ("bit-serial", "integer")
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, **options: Any) -> Scheme:
        """Returns the scheme with some options of its factories set, such as `granularity` or `clip`.

        Raises:
            ConfigError: The scheme has no such option, or the value has the wrong type.
        """
        known, kinds = self.defaults(), self._kinds()
        for name, value in options.items():
            if name not in known:
                raise ConfigError(
                    f"scheme {self.name!r} has no option {name!r}{did_you_mean(name, known)}; it has {', '.join(known)}"
                )
            if not conforms(value, kinds[name]):
                raise ConfigError(f"scheme {self.name!r}: option {name}={value!r} must be {described(kinds[name])}")
            if name == "gradient_bits":
                check_width(value, name)
        return replace(self, options={**self.options, **options})

    def defaults(self) -> dict[str, Any]:
        """Returns the options with their defaults; `gradient_bits` quantizes gradients as in DoReFa-Net."""
        activations = _options(self.inputs) if self.inputs else {}
        return {**activations, **_options(self.weights), "gradient_bits": None}

    def _kinds(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {"gradient_bits": int | None}
        for factory in filter(None, (self.inputs, self.weights)):
            parameters = inspect.signature(factory, eval_str=True).parameters.values()
            kinds |= {parameter.name: parameter.annotation for parameter in parameters}
        return kinds

    def activation_width(self, w_bits: int) -> int | None:
        """Returns the width of activations to use with `w_bits`: the same, or 8 if the scheme only covers weights."""
        if self.inputs is None:
            return None
        return 8 if self.covers == "weights" else w_bits

    def weight_quantizer(self, weight: Tensor, bits: int, reads: Tensor | None = None) -> Quantizer:
        """Returns a quantizer for a weight.

        Args:
            weight: The weight, `(M, ...)`.
            bits: Width of a code.
            reads: Samples of the columns that the weight is multiplied by, `(groups, n, samples)`, for schemes that use
                them.
        """
        if bits not in self.widths:
            return uniform(weight, bits, signed=True, symmetric=None)
        options, known = self._of(self.weights), inspect.signature(self.weights).parameters
        if "signed" in known:
            options.setdefault("signed", True)
        if "reads" in known:
            options["reads"] = reads
        return self._made(lambda: self.weights(weight, bits, **options), Quantizer)

    def input_quantizer(self, values: Tensor, bits: int) -> nn.Module:
        """Returns a quantizer for a layer's inputs, given samples of the inputs, `(samples, n)`."""
        if self.inputs is None:
            return nn.Identity()
        if bits not in self.input_widths:
            return linear_inputs(values, bits)
        factory, options = self.inputs, {**self._of(self.inputs), "granularity": "tensor"}
        return self._made(lambda: factory(values, bits, **options), nn.Module)

    def _made(self, call: Callable[[], object], kind: type[Made]) -> Made:
        made = guarded(f"scheme {self.name!r}", ConfigError, call)
        if not isinstance(made, kind):
            raise ConfigError(f"scheme {self.name!r} made {type(made).__name__}, not a {kind.__name__}")
        return made

    def _of(self, factory: Factory) -> dict[str, Any]:
        known = _options(factory)
        return {name: value for name, value in self.options.items() if name in known}


def _options(factory: Factory) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
