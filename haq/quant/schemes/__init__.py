"""Every quantization scheme by name, one file each."""

from __future__ import annotations

from typing import Any

from haq.errors import ConfigError, did_you_mean
from haq.quant.schemes.abcnet import ABCNET
from haq.quant.schemes.base import Scheme
from haq.quant.schemes.binaryconnect import BINARYCONNECT
from haq.quant.schemes.bnn import BNN
from haq.quant.schemes.bwn import BWN
from haq.quant.schemes.dorefa import DOREFA
from haq.quant.schemes.inq import INQ
from haq.quant.schemes.kmeans import KMEANS
from haq.quant.schemes.linear import ASYMMETRIC, HYBRID, LINEAR, POWER_OF_TWO
from haq.quant.schemes.lqnets import LQNETS
from haq.quant.schemes.lsq import LSQ
from haq.quant.schemes.nested import NESTED
from haq.quant.schemes.pact import PACT
from haq.quant.schemes.qil import QIL
from haq.quant.schemes.reduced import BF16, FP16
from haq.quant.schemes.ristretto import RISTRETTO
from haq.quant.schemes.ttq import TTQ
from haq.quant.schemes.twn import TWN
from haq.quant.schemes.wrpn import WRPN
from haq.quant.schemes.xnor import XNOR

__all__ = ["Scheme", "get_scheme", "list_schemes"]

_SCHEMES = {
    scheme.name: scheme
    for scheme in (
        LINEAR, ASYMMETRIC, POWER_OF_TWO, RISTRETTO, KMEANS, LQNETS, PACT, LSQ, QIL, NESTED, DOREFA, WRPN, ABCNET, INQ,
        TWN, TTQ, BINARYCONNECT, BWN, BNN, XNOR, FP16, BF16, HYBRID,
    )
}  # fmt: skip


def list_schemes() -> list[str]:
    """Returns the names that `get_scheme` knows, those that suit most users first."""
    return list(_SCHEMES)


def get_scheme(name: str, **options: Any) -> Scheme:
    """Returns a scheme, with options of its own such as `granularity` or `clip`.

    Raises:
        ConfigError: The name or an option is unknown.

    Examples:
        >>> get_scheme("kmeans", granularity="channel").arxiv
        '1510.00149'
    """
    if name not in _SCHEMES:
        known = ", ".join(_SCHEMES)
        raise ConfigError(f"unknown scheme {name!r}{did_you_mean(name, _SCHEMES)}; use one of {known}")
    return _SCHEMES[name].with_options(**options)
