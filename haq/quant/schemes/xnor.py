"""XNOR-Net: binary weights and activations, both with a scale."""

from __future__ import annotations

from torch import Tensor

from haq.quant.schemes.base import Scheme
from haq.quant.schemes.bnn import SignActivations
from haq.quant.schemes.bwn import BWNQuantizer

__all__ = ["XNOR", "XNORActivations"]


class XNORActivations(SignActivations):
    """β·sign(x − τ) with β = mean |x − τ| of the whole input, the solution of eq. 8 for one scale.

    The paper's K has a β for every position of the output (eq. 11). With one β for the tensor, the layer stays a plain
    binary convolution with one factor. The paper itself finds that K matters far less than α (section 4.2.2, table 3).
    """

    def magnitude(self, x: Tensor) -> Tensor:
        """Returns β, the mean |x| of the centred input."""
        return x.abs().mean().view(1)


XNOR = Scheme(
    name="xnor",
    title="XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks",
    arxiv="1603.05279",
    equation="section 3.2, eq. 8; one activation scale a tensor instead of K; sign around the mean behind a ReLU",
    weights=BWNQuantizer,
    inputs=XNORActivations,
    widths=(1,),
    input_widths=(1,),
    covers="both",
    kernels=("float",),
)
