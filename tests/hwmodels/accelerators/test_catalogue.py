from importlib.resources import files
from pathlib import Path

import pytest

from haq.errors import HardwareError
from haq.hwmodels import get_hardware, list_hardware

NAMES = ["avr", "bitfusion", "cloud", "edge", "gpu-int4", "int8-npu", "mcu-m4", "mcu-m7", "ultra96"]
KNOWN = ", ".join(NAMES)


def test_shipped_hardware():
    assert list_hardware() == NAMES
    assert [get_hardware(name).name for name in list_hardware()] == list_hardware()


@pytest.mark.parametrize("kind", [str, Path])
def test_own_file(tmp_path, kind):
    file = tmp_path / "mine.yaml"
    shipped = files("haq.configs") / "hardware" / "edge.yaml"
    file.write_text(shipped.read_text(encoding="utf-8").replace("name: edge", "name: mine"), encoding="utf-8")
    assert get_hardware(kind(file)).name == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("edgee", f"unknown hardware 'edgee' (did you mean 'edge'?); known: {KNOWN}, or the path of a .yaml file"),
        ("nowhere.yaml", f"hardware file 'nowhere.yaml' does not exist; give a path, or one of {KNOWN}"),
        ("../hardware/edge", "unknown hardware '../hardware/edge'"),
    ],
)
def test_unknown_hardware(name, said):
    with pytest.raises(HardwareError) as error:
        get_hardware(name)
    assert said in str(error.value)
