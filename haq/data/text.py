"""A plain text, cut into pieces of tokens; every token's label is the next token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from haq.data.samples import Tokens
from haq.data.splitting import VAL_SHARE, Splits
from haq.errors import DataError
from haq.io.prefixes import hugging_face, source_of
from haq.io.safe_yaml import read_text as read_plain
from haq.io.safe_yaml import reason_of

__all__ = ["read_text"]

_LENGTH = 128  # tokens in a piece
_TEST_SHARE = 0.1
_LEAST = 10  # pieces
_MOST_MIB = 1024


def read_text(spec: str, val_pieces: int, model: str | None) -> Splits:
    """Reads `text:FILE` with the tokenizer of a language model `hf:NAME_OR_FOLDER`.

    Pieces have 128 tokens, or fewer if the model takes fewer. They stay in order: the last tenth of the text is for
    testing, and the pieces before it, up to a fifth of the rest, are for validation.

    Args:
        spec: What to read.
        val_pieces: Number of pieces to validate on.
        model: Model that the tokens are for, `hf:NAME_OR_FOLDER`; its tokenizer is used.

    Raises:
        DataError: The file or the tokenizer cannot be read, or the text is too short.
    """
    path = Path(source_of(spec)[1])
    source, name = source_of(model or "")
    if source != "hf":
        raise DataError(f"data {spec!r} needs a model with a tokenizer, not {model!r}; give --model hf:NAME_OR_FOLDER")
    try:
        text = read_plain(path, _MOST_MIB)
    except (OSError, ValueError) as failure:
        raise DataError(f"cannot read text {str(path)!r}: {reason_of(failure)}; give a plain text file") from None
    asked, fix = f"the tokenizer of model {model!r}", "give the folder or name of a language model with its tokenizer"
    with hugging_face("transformers", asked, name, DataError, fix) as transformers:
        longest = getattr(transformers.AutoConfig.from_pretrained(name), "max_position_embeddings", _LENGTH)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokens = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    length = min(_LENGTH, int(longest))
    count = (len(tokens) - 1) // length
    if count < _LEAST:
        raise DataError(
            f"text {str(path)!r} has {len(tokens)} tokens; at least {_LEAST * length + 1} are needed, "
            f"for {_LEAST} pieces of {length}"
        )
    whole = Tokens(*(tokens[start : start + count * length].reshape(count, length) for start in (0, 1)))
    rest = count - max(1, int(_TEST_SHARE * count))
    known = rest - min(val_pieces, max(1, int(VAL_SHARE * rest)))
    bounds = ((0, known), (known, rest), (rest, count))
    train, val, test = (whole.subset(np.arange(start, stop)) for start, stop in bounds)
    return Splits(train, val, test, int(tokens.max()) + 1)
