import numpy as np
import pytest
import torch

from haq.errors import HardwareError
from haq.hwmodels.kernels.bit_planes import PlaneLayer
from haq.hwmodels.kernels.bitserial import BitSerialLayer, backends
from haq.hwmodels.kernels.runtime import Runtime


def test_the_fastest_kernels_unless_named() -> None:
    assert Runtime.of() == Runtime("cpu", backends()[0])
    for backend in (*backends(), "planes"):
        assert Runtime.of("cpu", backend) == Runtime("cpu", backend)


def test_layers_are_of_the_kernels_named() -> None:
    layer = Runtime.of("cpu", "plain").layer([[1, -2]], 3, 2, a_scale=0.5)
    planes = Runtime.of("cpu", "planes").layer([[1, -2]], 3, 2, a_scale=0.5)
    assert isinstance(layer, BitSerialLayer)
    assert isinstance(planes, PlaneLayer)
    assert layer.backend == "plain"
    x = np.array([[1.5, 0.5]], np.float32)
    assert planes(torch.from_numpy(x)).tolist() == layer(x).tolist() == [[1.0]]


@pytest.mark.parametrize("backend", [None, "planes"])
def test_a_gpu_has_one_kind_of_kernels(monkeypatch: pytest.MonkeyPatch, backend: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert Runtime.of("cuda", backend) == Runtime("cuda", "planes")


@pytest.mark.parametrize(
    ("device", "backend", "said"),
    [
        ("tpu", None, "device='tpu': kernels run on cpu or cuda"),
        ("cpu", "sse", "backend='sse': this CPU runs"),
        ("cuda", "plain", "backend='plain': on cuda there is only planes"),
        ("cuda", None, "device='cuda': V100 has compute capability 7.0, but int8 matrix products need 7.5; use cpu"),
    ],
)
def test_wrong_devices_are_one_line(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str | None, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "V100")
    with pytest.raises(HardwareError) as error:
        Runtime.of(device, backend)
    assert str(error.value).startswith(said)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError, match="device='cuda': PyTorch sees no CUDA device here; use cpu"):
        Runtime.of("cuda")
