"""Where the layers of a deployed network run, and on which kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from haq.errors import HardwareError
from haq.hwmodels.kernels.bit_planes import PlaneLayer
from haq.hwmodels.kernels.bitserial import BitSerialLayer
from haq.hwmodels.kernels.bitserial.cpu import get_backend
from haq.hwmodels.kernels.bitserial.definition import define

__all__ = ["Kernel", "Runtime"]

Kernel = BitSerialLayer | PlaneLayer

_PLANES = "planes"
_INT8_UNITS = (7, 5)  # compute capability: Turing


@dataclass(frozen=True)
class Runtime:
    """A device and the kernels on it.

    Attributes:
        device: `cpu` or `cuda`.
        backend: Name of the kernels.
    """

    device: str
    backend: str

    @classmethod
    def of(cls, device: str = "cpu", backend: str | None = None) -> Runtime:
        """Returns the device with the named kernels, or with its fastest ones.

        Args:
            device: `cpu` or `cuda`.
            backend: A backend of `BitSerialLayer`, on the CPU; or `planes`, the GPU's kernels, which also run on the
                CPU, slowly.

        Raises:
            HardwareError: The device is not available, or does not run these kernels.
        """
        if device not in ("cpu", "cuda"):
            raise HardwareError(f"device={device!r}: kernels run on cpu or cuda")
        if device == "cpu":
            return cls(device, _PLANES if backend == _PLANES else get_backend(backend).name)
        if backend not in (None, _PLANES):
            raise HardwareError(f"backend={backend!r}: on cuda there is only {_PLANES}; give that, or none")
        if not torch.cuda.is_available():
            raise HardwareError("device='cuda': PyTorch sees no CUDA device here; use cpu")
        if (capability := torch.cuda.get_device_capability()) < _INT8_UNITS:
            raise HardwareError(
                f"device='cuda': {torch.cuda.get_device_name()} has compute capability "
                f"{'.'.join(map(str, capability))}, but int8 matrix products need {'.'.join(map(str, _INT8_UNITS))}; "
                "use cpu"
            )
        return cls(device, _PLANES)

    def layer(self, *arguments: Any, **options: Any) -> Kernel:
        """Returns a layer; arguments and errors are those of `BitSerialLayer`."""
        if self.backend == _PLANES:
            return PlaneLayer(*define(*arguments, **options)).to(self.device)
        return BitSerialLayer(*arguments, **options | {"backend": self.backend})
