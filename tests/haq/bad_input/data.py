"""Data sets: arrays in npz, functions, folders of pictures, texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.haq.bad_input.case import Case, Spoil, cut, folder, link

_SEARCH = "search --model user.py:net --constraint latency=80% --data"


def _npz(message: str, part: str = "train", **arrays: Any) -> Case:
    def rewrite(path: Path) -> None:
        with np.load(path) as file:
            content = dict(file)
        content |= {key: value(content[key]) if callable(value) else value for key, value in arrays.items()}
        np.savez(path, allow_pickle=True, **{key: value for key, value in content.items() if value is not None})

    return Case(f"{_SEARCH} npz:data", message, {f"data/{part}.npz": rewrite})


def _file(spoil: Spoil, message: str) -> Case:
    return Case(f"{_SEARCH} npz:data", message, {"data/train.npz": spoil})


def _function(body: str, message: str) -> Case:
    source = f"import numpy as np\n\ndef load():\n    {body}\n"
    return Case(f"{_SEARCH} bad.py:load", message, {"bad.py": source})


def _pictures(message: str, **files: Callable[[Path], None] | bytes) -> Case:
    named = {"pictures/" + name.replace("__", "/") + ".png": content for name, content in files.items()}
    return Case(f"{_SEARCH} imagefolder:pictures", message, named)


def _png(width: int, height: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        from PIL import Image

        Image.fromarray(np.zeros((height, width), np.uint8)).save(path)

    return write


CASES = [
    Case(f"{_SEARCH} digit", "unknown data 'digit' (did you mean 'digits'?); use digits, npz:FOLDER"),
    Case(f"{_SEARCH} ''", "unknown data ''"),
    Case(f"{_SEARCH} npz:", "data"),
    Case(f"{_SEARCH} npz:nowhere", "data folder 'nowhere' does not exist; it must hold train.npz and test.npz"),
    Case(f"{_SEARCH} npz:~no_such_user/data", "data folder '~no_such_user/data' does not exist"),
    Case(f"{_SEARCH} npz:user.py", "data folder 'user.py' does not exist"),
    Case(f"{_SEARCH} NPZ:data", "NPZ:data"),
    Case(f"{_SEARCH} npz:run", "data file 'run/train.npz' does not exist"),
    Case(f"{_SEARCH} npz:data", "data file 'data/test.npz' does not exist", {"data/test.npz": None}),
    _file(b"", "cannot read 'data/train.npz' as npz without pickle"),
    _file(b"PK\x05\x06" + bytes(18), "'data/train.npz' has no array 'x'"),
    _file(b"not a zip", "cannot read 'data/train.npz' as npz without pickle"),
    _file(cut(0.5), "cannot read 'data/train.npz' as npz without pickle"),
    _file(cut(0.99), "cannot read 'data/train.npz' as npz without pickle"),
    _file(folder, "data file 'data/train.npz' does not exist"),
    _file(link("/dev/null"), "data file 'data/train.npz' does not exist"),
    _file(link("nowhere"), "data file 'data/train.npz' does not exist"),
    _file(lambda path: np.save(path.open("wb"), np.zeros(3)), "data/train.npz"),
    _npz("'data/train.npz' has no array 'y'", y=None),
    _npz("as npz without pickle", y=np.array([{}], object)),
    _npz("x is uint8 of shape (48, 8, 8), and uint8 is for images (N, H, W, C)", x=lambda x: x[..., 0]),
    _npz("x of a training sample is int64 (8, 8, 1), but of a test sample uint8 (8, 8, 1)", x=lambda x: x.astype(int)),
    _npz("x of a training sample is float32 (8, 8, 1), but of a test sample uint8", x=lambda x: x.astype(float)),
    _npz("x is bool of shape (48, 8, 8, 1); convert it to float32, or to int64", x=lambda x: x > 0),
    _npz("x is complex128 of shape", x=lambda x: x.astype(complex)),
    _npz("x is float64 of shape (48,)", x=lambda x: x.mean((1, 2, 3))),
    _npz("x is <U1", x=np.array("x")),
    _npz("x of shape (0, 8, 8, 1) is empty", x=lambda x: x[:0], y=lambda y: y[:0]),
    _npz("x of shape (48, 0, 8, 1) is empty", x=lambda x: x[:, :0]),
    _npz("47 samples but labels for 48", x=lambda x: x[1:]),
    _npz("y is float64 of shape (48,); y must be integers", y=lambda y: y.astype(float)),
    _npz("y is int64 of shape (48, 1)", y=lambda y: y[:, None]),
    _npz("y is bool of shape", y=lambda y: y > 0),
    _npz("label -1 is negative; labels count from 0", y=lambda y: y - 1),
    _npz("all training labels are 0; at least two classes are needed", y=lambda y: y * 0),
    _npz("test label 3 does not occur among the training labels", "test", y=lambda y: y + 1),
    _npz("y has the value … , which is beyond int64; give smaller integers", y=lambda y: y.astype(np.uint64) + 2**63),
    _npz("test label 1 does not occur", y=lambda y: y * 10**9),
    _npz("x has NaN or infinite values", x=lambda x: (x * np.nan).transpose(0, 3, 1, 2).astype(np.float32)),
    _npz("training sample is uint8 (8, 8, 1), but of a test sample uint8 (6, 8, 1)", "test", x=lambda x: x[:, 2:]),
    _npz("no default normalisation for 2 channels; add arrays mean and std", x=lambda x: np.repeat(x, 2, axis=3)),
    _npz("mean and std must hold 1 finite values, std above 0", mean=np.zeros(3), std=np.ones(3)),
    _npz("mean and std must hold 1 finite values", mean=np.zeros(1), std=np.zeros(1)),
    _npz("mean and std must hold 1 finite values", mean=np.array([np.nan]), std=np.ones(1)),
    _npz("mean and std must hold 1 finite values", mean=np.zeros(1)),
    _npz("no class has two training samples", x=lambda x: x[:3], y=lambda y: y[:3]),
    _function("return 3", "data function 'bad.py:load' must return ((x_train, y_train), (x_test, y_test))"),
    _function("return None", "must return ((x_train, y_train), (x_test, y_test))"),
    _function("return ((1, 2), (3, 4), (5, 6))", "must return ((x_train, y_train), (x_test, y_test))"),
    _function("return (([[1], [2, 3]], [0]), ([], []))", "bad.py:load (train): not an array"),
    _function("return ((np.zeros(2), [0, 1]),) * 2", "bad.py:load (train): x is float64 of shape (2,)"),
    _function(
        "return ((np.zeros((8, 8, 8, 1)), [0, 1] * 4),) * 2",
        "sample of shape (1, 8, 8, 1) with float32 values",
    ),
    _function(
        "return ((np.zeros((8, 9), int), [0, 1] * 4),) * 2", "fails on a sample of shape (1, 9) with int64 values"
    ),
    _function(
        "return ((np.zeros((8, 1, 9, 9)), [[0, 1, 2]] * 8),) * 2",
        "an output of shape (1, 3) for one sample; it must give (1, 3, 3) or more classes: an answer for each of the 3",
    ),
    _function("raise KeyError('x')", "data function 'bad.py:load' raised KeyError: 'x'"),
    _function("import os; os.remove('nowhere')", "raised FileNotFoundError"),
    # Pictures
    Case(f"{_SEARCH} imagefolder:nowhere", "data folder 'nowhere' does not exist; give folders of images by class"),
    Case(f"{_SEARCH} imagefolder:data", "data"),
    Case(f"{_SEARCH} hf:nowhere", "cannot load data 'hf:nowhere': 'nowhere' is neither a folder nor in the cache"),
    _pictures("no column of class labels", train__a=_png(8, 8)),
    _pictures("remove that image", train__a__1=b"no picture", train__b__1=_png(8, 8)),
    _pictures("images are of several sizes", train__a__1=_png(8, 8), train__b__1=_png(8, 9)),
    _pictures("no class has two", train__a__1=_png(8, 8), train__b__1=_png(8, 8)),
    # Texts
    Case(f"{_SEARCH} text:user.py", "data 'text:user.py' needs a model with a tokenizer, not 'user.py:net'"),
    Case(
        "search --model hf:data --data text:nowhere --constraint latency=80%",
        "cannot read text 'nowhere': No such file or directory; give a plain text file",
    ),
    Case(
        "search --model hf:data --data text:weights.pt --constraint latency=80%",
        "cannot read text 'weights.pt': it is not UTF-8",
    ),
    Case("search --model hf:data --data text:data --constraint latency=80%", "cannot read text 'data': Is a directory"),
]
