"""Working memory: which activations are alive at once, and how many bytes they take at the widths of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from haq.hwmodels.accelerators.footprint import FLOAT_BITS

__all__ = ["Buffer", "MemoryPlan", "Step"]

_SHARED_BITS = 8


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory, for one sample.

    It is stored at the widest width of the layers that read it. A tensor that leaves the network or that something else
    reads too, such as a residual addition, has at least 8 bits, as in integer-only networks.

    Attributes:
        elements: Number of values.
        readers: Names of the layers that read it.
        shared: Whether something other than `readers` reads it.
    """

    elements: int
    readers: tuple[str, ...]
    shared: bool


@dataclass(frozen=True)
class Step:
    """An operation and the buffers that must exist while it runs.

    Attributes:
        layer: The layer that runs, or `None` for an operation without weights.
        alive: Indices of the buffers that it reads, that it writes, and that are kept for later.
    """

    layer: str | None
    alive: tuple[int, ...]


@dataclass(frozen=True)
class MemoryPlan:
    """The buffers of a network and the steps that need them, in the order of execution.

    References:
        The peak over steps of the memory alive at once, with activations as wide as their reader needs, follows
        Rusci, Capotondi, Benini: Memory-Driven Mixed Low Precision Quantization for Enabling Deep Network Inference on
        Microcontrollers, MLSys 2020, arXiv:1905.13082, which counts the input and the output of a layer.
    """

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]

    @cached_property
    def _alive(self) -> npt.NDArray[np.float64]:
        alive = np.zeros((len(self.steps), len(self.buffers)))
        for row, step in enumerate(self.steps):
            alive[row, list(step.alive)] = 1.0
        return alive

    def peaks(
        self, layers: Sequence[str], a_bits: npt.NDArray[Any], buffer_bytes: npt.NDArray[np.float64], batch: int
    ) -> npt.NDArray[np.float64]:
        """Returns the most bytes in use at any step, `(P,)`, for P policies at once.

        Args:
            layers: Names of the L layers, in the order of the columns of the next two arguments. Others are in floating
                point.
            a_bits: Width of the input of each layer, `(P, L)`; 0 is floating point.
            buffer_bytes: Working memory of each layer beside its input and output, `(P, L)`.
            batch: Samples at once.
        """
        column = {name: index for index, name in enumerate(layers)}
        widths = np.where(a_bits == 0, FLOAT_BITS, a_bits)
        stored = np.zeros((len(a_bits), len(self.buffers)))
        for index, buffer in enumerate(self.buffers):
            bits = np.full(len(a_bits), _SHARED_BITS if buffer.shared or not buffer.readers else 1)
            for name in buffer.readers:
                bits = np.maximum(bits, widths[:, column[name]] if name in column else FLOAT_BITS)
            stored[:, index] = -(-batch * buffer.elements * bits // 8)
        used = stored @ self._alive.T
        for row, step in enumerate(self.steps):
            if step.layer in column:
                used[:, row] += buffer_bytes[:, column[step.layer]]
        peaks: npt.NDArray[np.float64] = used.max(axis=1)
        return peaks

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `from_dict` restores an equal plan."""
        return {
            "buffers": [[buffer.elements, list(buffer.readers), buffer.shared] for buffer in self.buffers],
            "steps": [[step.layer, list(step.alive)] for step in self.steps],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MemoryPlan:
        """Restores a plan from the result of `to_dict`."""
        return cls(
            tuple(Buffer(int(count), tuple(readers), bool(shared)) for count, readers, shared in data["buffers"]),
            tuple(Step(layer, tuple(alive)) for layer, alive in data["steps"]),
        )
