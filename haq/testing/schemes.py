"""Checks that every implementation of an interface must pass; tests only supply the object.

@pytest.mark.parametrize("name", list_schemes())
def test_scheme(name):
    check_scheme(get_scheme(name))
"""

from __future__ import annotations

import copy
import io
import pickle  # nosec B403  # only of objects that this file pickled
from collections.abc import Callable

import torch
from torch import Tensor, nn

from haq.errors import DataError
from haq.quant.quantizers.base import Quantizer
from haq.quant.quantizers.granularity import group
from haq.quant.quantizers.uniform import UniformQuantizer
from haq.quant.schemes import Scheme

__all__ = ["GRANULARITIES", "check_quantizer", "check_scheme"]

GRANULARITIES = ("tensor", "channel", "row", "column", "group:4", "element")

_SHAPE = (4, 3, 2, 2)
_CODEBOOK_BITS = 4  # an element or a short row has no use for larger codebooks, and setting them up takes long


def check_scheme(scheme: Scheme, device: str = "cpu", seed: int = 0) -> None:
    """Checks all quantizers that a scheme makes, at every width and granularity.

    Args:
        scheme: The scheme.
        device: Device of the tensors, `cpu` or `cuda`.
        seed: Seed of the random tensors.

    Raises:
        AssertionError: A property does not hold; the message names it.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(_SHAPE, generator=generator).to(device)
    positive = torch.randn(6, 40, generator=generator).clamp_min(0).to(device)
    for bits in scheme.widths:
        for granularity in GRANULARITIES if bits <= _CODEBOOK_BITS else GRANULARITIES[:2]:
            chosen = scheme.with_options(granularity=granularity)
            check_quantizer(_maker(chosen.weight_quantizer, bits, device), weight)
    if scheme.inputs is None:
        return
    for bits in scheme.input_widths:
        for samples in (positive, weight.flatten(1)):
            check_quantizer(_maker(scheme.input_quantizer, bits, device), samples)


def _maker(factory: Callable[[Tensor, int], nn.Module], bits: int, device: str) -> Callable[[Tensor], Quantizer]:
    def make(values: Tensor) -> Quantizer:
        quantizer = factory(values, bits)
        assert isinstance(quantizer, Quantizer), f"{type(quantizer).__name__} is not a Quantizer"
        return quantizer.to(device)

    return make


def check_quantizer(make: Callable[[Tensor], Quantizer], x: Tensor) -> None:
    """Checks one quantizer, made for `x` by `make`.

    Raises:
        AssertionError: A property does not hold; the message names it.
    """
    quantizer = make(x).eval()
    what = f"{type(quantizer).__name__}({quantizer.extra_repr()})"
    y = _checked_output(quantizer, x, what)
    _check_grid(quantizer, x, y, what)
    _check_gradient(make(x), x, what)
    _check_copies(quantizer, make, x, y, what)
    _check_refusals(make, x, what)
    for constant in (0.0, 0.7):
        flat = torch.full_like(x, constant)
        _checked_output(make(flat).eval(), flat, f"{what} on a tensor of {constant}")
    _checked_output(make(x.bfloat16()).eval(), x.bfloat16(), f"{what} in bfloat16")


def _checked_output(quantizer: Quantizer, x: Tensor, what: str) -> Tensor:
    with torch.no_grad():
        y: Tensor = quantizer(x)
    stored = quantizer.encode(x)
    assert y.shape == x.shape, f"{what}: shape {tuple(y.shape)} from {tuple(x.shape)}"
    assert y.dtype == x.dtype, f"{what}: {y.dtype} from {x.dtype}"
    assert bool(torch.isfinite(y).all()), f"{what}: not finite"
    assert stored.codes.dtype == torch.int32, f"{what}: codes are {stored.codes.dtype}"
    assert stored.codes.shape == x.shape, f"{what}: codes of shape {tuple(stored.codes.shape)}"
    assert torch.allclose(stored.dequantize(), y, rtol=1e-2 if x.dtype == torch.bfloat16 else 1e-4, atol=1e-6), (
        f"{what}: the dequantized codes differ from the output"
    )
    packed = [-(-p.numel() * stored.bits // 8) for p in (stored.codes, stored.zero_point) if p is not None]
    parameters = [p.numel() for p in (stored.scale, stored.codebook) if p is not None]
    assert stored.size_bytes == sum(packed) + 4 * sum(parameters), f"{what}: size_bytes"
    return y


def _check_grid(quantizer: Quantizer, x: Tensor, y: Tensor, what: str) -> None:
    levels = max(len(row.unique()) for row in group(quantizer.encode(x).codes, quantizer.granularity))
    assert levels <= 2**quantizer.bits, f"{what}: {levels} levels"
    if quantizer.is_projection:
        with torch.no_grad():
            again = quantizer(y)
        assert torch.allclose(again, y, rtol=1e-4, atol=1e-6), f"{what}: moves values that lie on its grid"
    if type(quantizer) is UniformQuantizer and quantizer.bits > 1:
        step = quantizer.scale.detach()[:, None]
        reach = 0.5 if quantizer.rounding == "nearest" else 1.0
        rows, rounded = group(x, quantizer.granularity), group(y, quantizer.granularity)
        inside = (rounded > rounded.amin(1, keepdim=True)) & (rounded < rounded.amax(1, keepdim=True))
        away = ((rows - rounded).abs() / step)[inside]
        assert not len(away) or float(away.max()) <= reach + 1e-3, f"{what}: {float(away.max())} steps away"


def _check_gradient(quantizer: Quantizer, x: Tensor, what: str) -> None:
    leaf = x.clone().requires_grad_()
    quantizer.train()(leaf).square().sum().backward()
    assert leaf.grad is not None, f"{what}: no gradient for the values"
    assert bool(torch.isfinite(leaf.grad).all()), f"{what}: gradient of the values is not finite"
    for name, parameter in quantizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{what}: no gradient for {name}"
            assert bool(torch.isfinite(parameter.grad).all()), f"{what}: gradient of {name} is not finite"
    assert all(size > 0 for _, size in quantizer.learned()), f"{what}: a learned parameter without magnitude"


def _check_copies(quantizer: Quantizer, make: Callable[[Tensor], Quantizer], x: Tensor, y: Tensor, what: str) -> None:
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    restored = make(torch.ones_like(x))
    restored.load_state_dict(torch.load(file, weights_only=True))
    for name, twin in {
        "a state dict": restored.eval(),
        "deepcopy": copy.deepcopy(quantizer),
        "pickle": pickle.loads(pickle.dumps(quantizer)),  # nosec B301  # pickled on this line
    }.items():
        with torch.no_grad():
            assert torch.equal(twin(x), y), f"{what}: changed by {name}"


def _check_refusals(make: Callable[[Tensor], Quantizer], x: Tensor, what: str) -> None:
    for wrong in (x.clone().fill_(float("nan")), x.clone().fill_(float("inf")), x[:0]):
        try:
            make(wrong)
        except DataError:
            continue
        accepted = "an empty tensor" if not wrong.numel() else "values that are not finite"
        raise AssertionError(f"{what}: accepts {accepted}")
