from pathlib import Path

import numpy as np
import pytest
import torch

from haq.data import Tokens, get_data
from haq.errors import DataError
from tests.tiny_transformers import PIECE, WORDS, save_language_model, save_vit, text

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("lm"))


def test_labels_are_the_tokens_that_follow(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text(100 * PIECE + 1))
    data = get_data(f"text:{tmp_path / 'text.txt'}", 7, 0, f"hf:{folder}")
    assert isinstance(data.train, Tokens)
    assert [len(part) for part in (data.train, data.val, data.test)] == [83, 7, 10]
    vocabulary = list(dict.fromkeys(WORDS))
    assert data.num_classes == len(vocabulary)
    x = np.concatenate([part.x for part in (data.train, data.val, data.test)])
    assert " ".join(vocabulary[token] for token in x.ravel()) == text(100 * PIECE + 1).rpartition(" ")[0]
    tokens, labels = data.val.batch([0, 3])
    assert (tokens.dtype, tokens.shape) == (torch.int64, (2, PIECE))
    assert torch.equal(labels[:, :-1], tokens[:, 1:])
    assert data.val.y[0, -1] == data.val.x[1, 0]


def test_batches_of_tokens_are_small() -> None:
    tokens = Tokens(np.zeros((40, 128), np.int64), np.zeros((40, 128), np.int64))
    assert [len(x) for x, _ in tokens.batches(64)] == [8] * 5
    assert tokens.fitting(4) == 4
    assert Tokens(np.zeros((2, 4000), np.int64), np.zeros((2, 4000), np.int64)).fitting(64) == 1


def test_bad_texts(folder: Path, tmp_path: Path) -> None:
    model, file = f"hf:{folder}", tmp_path / "text.txt"

    def refused(spec: str, model: str | None) -> str:
        with pytest.raises(DataError) as error:
            get_data(spec, 7, 0, model)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "No such file or directory; give a plain text file" in refused(f"text:{file}", model)
    file.write_bytes(b"\xff\xfe\x00")
    assert "it is not UTF-8" in refused(f"text:{file}", model)
    file.write_text(text(100))
    expected = f"has 100 tokens; at least {10 * PIECE + 1} are needed, for 10 pieces of {PIECE}"
    assert expected in refused(f"text:{file}", model)
    assert "needs a model with a tokenizer, not 'resnet20'" in refused(f"text:{file}", "resnet20")
    assert "cannot load the tokenizer of model" in refused(f"text:{file}", f"hf:{save_vit(tmp_path / 'vit')}")
