"""Networks and their weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.haq.bad_input.case import Case, Spoil, cut, folder, link

_SEARCH = "search --data npz:data --constraint latency=80% --model"


def _function(body: str, message: str) -> Case:
    source = f"import sys\nimport torch\nfrom torch import nn\n\ndef net():\n    {body}\n"
    return Case(f"{_SEARCH} bad.py:net", message, {"bad.py": source})


def _file(source: str, message: str) -> Case:
    return Case(f"{_SEARCH} bad.py:net", message, {"bad.py": source})


def _weights(spoil: Spoil, message: str) -> Case:
    return Case(f"{_SEARCH} user.py:net --weights weights.pt", message, {"weights.pt": spoil})


def _state(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def rewrite(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        torch.save(change(state), path)

    return rewrite


def _safetensors(path: Path) -> None:
    save_file({"x": torch.zeros(1)}, path)


_DAMAGED = "cannot read weights 'weights.pt': it is damaged or not a plain state dict; save one with torch.save"

CASES = [
    Case(f"{_SEARCH} resnt20", "unknown model 'resnt20' (did you mean 'resnet20'?); use"),
    Case(f"{_SEARCH} ''", "unknown model ''"),
    Case(f"{_SEARCH} resnet20", "model 'resnet20' has no weights yet; give --weights FILE"),
    Case(f"{_SEARCH} nowhere.py:net", "model file 'nowhere.py' does not exist; give an existing file.py:function"),
    Case(f"{_SEARCH} data.py:net", "model file 'data.py' does not exist"),
    Case(f"{_SEARCH} user.py:nett", "model 'user.py' has no function 'nett' (did you mean 'net'?)"),
    Case(f"{_SEARCH} user.py:torch", "model 'user.py' has no function 'torch'"),
    Case(f"{_SEARCH} user.py", "unknown model 'user.py'"),
    Case(f"{_SEARCH} user.py:", "unknown model 'user.py:'"),
    Case(f"{_SEARCH} user.py:net:net", "model"),
    Case(
        f"{_SEARCH} no.such.module:net",
        "cannot import model 'no.such.module': ModuleNotFoundError",
    ),
    Case(f"{_SEARCH} hf:nowhere", "cannot load model 'hf:nowhere': 'nowhere' is neither a folder nor in the cache"),
    Case(f"{_SEARCH} hf:data", "cannot load model 'hf:data'"),
    Case(f"{_SEARCH} timm:resnet", "model 'timm:resnet'"),
    Case(f"{_SEARCH} torchvision:resnet", "model 'torchvision:resnet'"),
    _file("", "model 'bad.py' has no function 'net'"),
    _file("def net(:\n", "cannot import model 'bad.py': SyntaxError"),
    _file("import nowhere_to_be_found\n", "cannot import model 'bad.py': ModuleNotFoundError"),
    _file("raise SystemExit(0)\n", "cannot import model 'bad.py': SystemExit"),
    _file("1 / 0\n", "cannot import model 'bad.py': ZeroDivisionError: division by zero"),
    _file("\x00", "cannot import model 'bad.py'"),
    _file("net = 3\n", "model 'bad.py' has no function 'net'"),
    Case(f"{_SEARCH} bad.py:net", "cannot import model 'bad.py'", {"bad.py": b"\xff\xfe\x00"}),
    _function("raise ValueError('line one\\nline two')", "raised ValueError: line one line two"),
    _function("raise ValueError('\\x1b[31mred')", r"raised ValueError: \x1b[31mred"),
    _function("sys.exit(0)", "model function 'bad.py:net' raised SystemExit: 0"),
    _function("return net()", "model function 'bad.py:net' raised RecursionError"),
    _function("raise MemoryError", "model function 'bad.py:net' raised MemoryError"),
    _function("return None", "model function 'bad.py:net' returned NoneType, not a torch.nn.Module"),
    _function("return {}", "model function 'bad.py:net' returned dict, not a torch.nn.Module"),
    _function("return nn.Linear", "model function 'bad.py:net' returned type, not a torch.nn.Module"),
    _function("return nn.Linear(64, 3).state_dict()", "returned OrderedDict, not a torch.nn.Module"),
    _function("return nn.Flatten()", "Flatten calls no layer that can be quantized"),
    _function("return nn.Sequential()", "the data has 3 classes, but the model gives an output of shape (1, 1, 8, 8)"),
    _function("return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))", "has no shape yet; run the model once"),
    _function("return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))", "fails on a sample of shape (1, 1, 8, 8)"),
    _function("return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))", "the data has 3 classes, but the model gives"),
    _function("return nn.LSTM(8, 3)", "LSTM fails on a sample of shape (1, 1, 8, 8)"),
    _function("return nn.Conv2d(1, 3, 1)", "the data has 3 classes, but the model gives an output of shape (1, 3"),
    _function(
        "m = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)); m[1].weight.data[0] = float('nan'); return m",
        "weight '1.weight' of 'bad.py:net' has NaN or infinite values; train or load it again",
    ),
    _function("return nn.Sequential(nn.Flatten(), nn.Linear(64, 3, device='meta'))", "bad.py:net"),
    # Weights
    Case(f"{_SEARCH} user.py:net --weights nowhere.pt", "weights file 'nowhere.pt' does not exist"),
    Case(f"{_SEARCH} user.py:net --weights ~no_such_user/x.pt", "weights file '~no_such_user/x.pt' does not exist"),
    Case(f"{_SEARCH} user.py:net --weights ''", "weights file"),
    _weights(b"", _DAMAGED),
    _weights(b"PK\x03\x04", _DAMAGED),
    _weights("not weights at all", _DAMAGED),
    _weights(cut(0.5), _DAMAGED),
    _weights(folder, "weights file 'weights.pt' does not exist"),
    _weights(link("nowhere"), "weights file 'nowhere' does not exist"),
    _weights(link("/dev/null"), "weights file '/dev/null' does not exist"),
    _weights(_safetensors, _DAMAGED),
    _weights(_state(lambda state: torch.nn.Linear(1, 1)), _DAMAGED),
    _weights(_state(lambda state: list(state.values())), "weights 'weights.pt' hold list, not a state dict of tensors"),
    _weights(_state(lambda state: torch.zeros(3)), "weights 'weights.pt' hold Tensor, not a state dict"),
    _weights(_state(lambda state: state | {"epoch": 3}), "hold OrderedDict, not a state dict of tensors"),
    _weights(_state(lambda state: {1: torch.zeros(1)}), "not a state dict of tensors"),
    _weights(_state(lambda state: {"state_dict": 3}), "not a state dict of tensors"),
    _weights(_state(lambda state: {}), "do not fit Sequential: 6 missing: 0.weight, 0.bias, 2.weight, …"),
    _weights(_state(lambda state: state | {"x": torch.zeros(1)}), "do not fit Sequential: 1 unknown: x"),
    _weights(
        _state(lambda state: state | {"6.bias": torch.zeros(4)}),
        "1 of another shape: 6.bias is (4,) but should be (3,)",
    ),
    _weights(
        _state(lambda state: state | {"6.bias": torch.full((3,), torch.nan)}),
        "weight '6.bias' of … has NaN or infinite",
    ),
    _weights(
        _state(lambda state: state | {"6.bias": torch.full((3,), torch.inf)}),
        "weight '6.bias' of … has NaN or infinite",
    ),
    _weights(_state(lambda state: state | {"6.bias": torch.zeros(3, dtype=torch.complex64)}), "6.bias"),
    _weights(_state(lambda state: state | {"6.bias": torch.zeros(3).to_sparse()}), "6.bias"),
    _weights(_state(lambda state: state | {"6.bias": torch.zeros(3, device="meta")}), "6.bias"),
    _weights(_state(lambda state: {"\x1b[2J": torch.zeros(1)}), r"unknown: \x1b[2J"),
]
