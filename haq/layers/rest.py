"""What a network reads that no layer of a policy covers. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from haq.io.validation import restored
from haq.metrics import format_cost

__all__ = ["Left", "Rest"]

_REASONS = 3  # that a sentence gives
_NAMED = 2  # the largest parts that it names for each
_MOST = 0.5


@dataclass(frozen=True)
class Left:
    """A part of a network that stays at its stored type.

    Attributes:
        name: Path of a module, or of a parameter or buffer of a module that holds others.
        kind: Class of the module; `parameter` or `buffer`.
        weights: Number of parameters, biases included.
        weight_bytes: Their bytes.
        size_bytes: Bytes that are stored, with buffers.
        reason: Why it stays, as the end of a sentence.
        shared_bytes: Bytes of these that are a layer's weight too. The layer stores its own codes of it, so the part
            needs them beside; the float network stores them once.
    """

    name: str
    kind: str
    weights: int
    weight_bytes: int
    size_bytes: int
    reason: str
    shared_bytes: int = 0


@dataclass(frozen=True)
class Rest:
    """All that a network reads for one sample beside the weights and biases of its layers.

    What a forward pass does not touch, such as a head for training alone, is no part of it; nor are buffers that a
    state leaves out, because code makes them anew; nor are batch norms that a layer absorbs.

    Attributes:
        parts: In the order of `named_modules`.
        covered: Weights of the layers, without biases; one that two layers share counts once.
        macs: Multiply-accumulates for one sample that no layer counts, such as the products of attention.
        multiplied: Weights of `parts` that these read, such as those of an LSTM; not those of an embedding.
    """

    parts: tuple[Left, ...] = ()
    covered: int = 0
    macs: int = 0
    multiplied: int = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return bool(self.parts or self.macs)

    @property
    def weights(self) -> int:
        """Number of parameters outside of the layers."""
        return sum(part.weights for part in self.parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of these parameters."""
        return sum(part.weight_bytes for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Bytes that are stored for them and for buffers."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def float_bytes(self) -> int:
        """Bytes that the float network stores for them, beside its layers."""
        return sum(part.size_bytes - part.shared_bytes for part in self.parts)

    @property
    def share(self) -> float:
        """Share of all weights that the layers hold."""
        return self.covered / max(1, self.covered + self.weights)

    @property
    def mostly(self) -> bool:
        """Whether more than half of the weights are outside of the layers."""
        return self.share < _MOST

    def said(self) -> str:
        """Returns a sentence for people; empty if no weights and buffers are left.

        Examples:
            >>> lstm = Left("lstm", "LSTM", 1_360_000, 5_440_000, 5_440_000, "no kind of layer covers LSTM")
            >>> Rest((lstm,), covered=1_640_000).said()
            'layers hold 54.7 % of the weights; lstm (1.36 M, 5.44 MB) stays in floating point because no kind of \
layer covers LSTM'
        """
        if not self.parts:
            return ""
        reasons: dict[str, list[Left]] = {}
        for part in sorted(self.parts, key=lambda part: -part.size_bytes):
            reasons.setdefault(part.reason, []).append(part)
        groups = sorted(reasons.values(), key=lambda parts: -sum(part.size_bytes for part in parts))
        named = "; ".join(_stay(parts) for parts in groups[:_REASONS])
        others = [part for parts in groups[_REASONS:] for part in parts]
        more = f"; so do {len(others)} smaller parts ({_shown(others)})" if len(others) > 1 else ""
        more = f"; so does {others[0].name} ({_shown(others)})" if len(others) == 1 else more
        warning = "most of the network is not quantized: " if self.mostly else ""
        return f"{warning}layers hold {_percent(self.share)} of the weights; {named}{more}"

    def described(self) -> dict[str, Any]:
        """Returns what programs read, as plain JSON types."""
        return {
            "layers_share": self.share,
            "weights": self.weights,
            "size_bytes": self.size_bytes,
            "macs": self.macs,
            "parts": [asdict(part) for part in self.parts],
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `from_dict` restores an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rest:
        """Restores what `to_dict` gave.

        Raises:
            ConfigError: A key is unknown or missing, or a value has the wrong type.
        """
        return restored(cls, {**data, "parts": tuple(restored(Left, part) for part in data["parts"])})


def _stay(parts: list[Left]) -> str:
    """Returns which parts stay, the largest by name, and the reason, which they share."""
    named = [f"{p.name} ({_count(p.weights)}{format_cost('size_bytes', p.size_bytes)})" for p in parts[:_NAMED]]
    if others := parts[_NAMED:]:
        named.append(f"{len(others)} more ({_shown(others)})")
    shown = " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
    return f"{shown} {'stay' if len(parts) > 1 else 'stays'} in floating point because {parts[0].reason}"


def _shown(parts: list[Left]) -> str:
    return format_cost("size_bytes", sum(part.size_bytes for part in parts))


def _count(number: int) -> str:
    """Formats a number of weights, with a comma behind it; nothing for buffers."""
    shown = str(number) if number < 1000 else format_cost("bops", number).removesuffix("bops")
    return f"{shown}, " if number else ""


def _percent(share: float) -> str:
    """Formats a share; only a whole network has 100 %."""
    shown = f"{share:.1%}".replace("%", " %")
    return "over 99.9 %" if shown == "100.0 %" and share < 1 else shown
