import copy
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from haq.errors import HardwareError
from haq.hwmodels import Bismo, list_hardware
from haq.hwmodels.accelerators.description import build_hardware, read_description

KINDS = {"bismo": Bismo}
SHIPPED = {
    name: yaml.safe_load((files("haq.configs") / "hardware" / f"{name}.yaml").read_text(encoding="utf-8"))
    for name in list_hardware()
}


def spoiled(path: str, value: Any) -> dict[str, Any]:
    """Returns the description of `edge` with `value` at the dotted `path`; `...` removes the key."""
    content = copy.deepcopy(SHIPPED["edge"])
    *parents, key = path.split(".")
    target = content
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[key]
    else:
        target[key] = value
    return content


@pytest.mark.parametrize("name", list_hardware())
def test_every_shipped_number_has_a_source(name):
    assert SHIPPED[name]["name"] == name
    for entry in SHIPPED[name]["parameters"].values():
        assert len(entry["source"]) > 20


def test_description_becomes_the_hardware(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(spoiled("parameters.rows.value", 4)), encoding="utf-8")
    hardware = build_hardware(read_description(file, KINDS), KINDS)
    assert (hardware.name, hardware.rows, hardware.depth, hardware.clock_mhz) == ("edge", 4, 256, 200.0)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("kind", "bismoo", "kind='bismoo': unknown (did you mean 'bismo'?); known: bismo"),
        ("name", "", "name='': give the hardware a short name"),
        ("name", ..., "missing key 'name'; the file must hold name, kind, summary"),
        ("clock", 200, "unknown key 'clock'"),
        ("summary", "", "summary='': say in one line what the hardware is"),
        ("pairs", [], "pairs=[]: list legal widths, weights before activations, such as [8/8, 1-8/4,8]"),
        ("pairs", ["8"], "pairs: cannot read '8'; list legal widths"),
        ("pairs", ["9/8"], "pairs: cannot read '9/8'; list legal widths"),
        ("limits", {"flash": 1}, "unknown key 'limits.flash'; known: latency, energy, size"),
        ("limits", {"size": 32768}, "limits.size must be a mapping of value, unit, source, but got 32768"),
        ("ties", ["shared-inputs"], "ties=['shared-inputs']: must be a list of shared-input"),
        ("ties", "shared-input", "ties='shared-input': must be a list of shared-input"),
        ("ties", [["shared-input"]], "ties=[['shared-input']]: must be a list of shared-input"),
        ("parameters", 3, "parameters must be a mapping of rows, depth"),
        ("parameters.dram_bits_per_cyle", {}, "'parameters.dram_bits_per_cyle' (did you mean 'dram_bits_per_cycle'?)"),
        ("parameters.clock_mhz", ..., "missing key 'parameters.clock_mhz'"),
        ("parameters.clock_mhz", 200, "parameters.clock_mhz must be a mapping of value, unit, source, but got 200"),
        ("parameters.clock_mhz.source", ..., "missing key 'parameters.clock_mhz.source'"),
        ("parameters.clock_mhz.source", " ", "parameters.clock_mhz.source=' ': say where the number comes from"),
        ("parameters.clock_mhz.unit", "GHz", "parameters.clock_mhz.unit='GHz': must be 'MHz'; convert the value"),
        ("parameters.clock_mhz.value", 0, "parameters.clock_mhz.value=0: must be a positive number"),
        ("parameters.clock_mhz.value", -1.5, "parameters.clock_mhz.value=-1.5: must be a positive number"),
        ("parameters.clock_mhz.value", float("nan"), "parameters.clock_mhz.value=nan: must be a positive number"),
        ("parameters.clock_mhz.value", float("inf"), "parameters.clock_mhz.value=inf: must be a positive number"),
        ("parameters.clock_mhz.value", True, "parameters.clock_mhz.value=True: must be a positive number"),
        ("parameters.clock_mhz.value", "200", "parameters.clock_mhz.value='200': must be a positive number"),
        ("parameters.rows.value", 8.5, "parameters.rows.value=8.5: must be a positive whole number"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(tmp_path, path, value, said):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(spoiled(path, value)), encoding="utf-8")
    with pytest.raises(HardwareError) as error:
        read_description(file, KINDS)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\xfa", b""])
def test_what_is_not_yaml_is_refused_in_one_line(tmp_path: Path, content: bytes):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(HardwareError) as error:
        read_description(file, KINDS)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
