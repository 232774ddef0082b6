from collections import namedtuple

import torch

from haq.layers import fresh

Pair = namedtuple("Pair", "left right")


def test_every_tensor_is_a_copy() -> None:
    x = torch.arange(3.0)
    given = (x, [x, {"mask": x, "words": "three"}], Pair(x, None))
    taken = fresh(given)
    for tensor in (taken[0], taken[1][0], taken[1][1]["mask"], taken[2].left):  # type: ignore[index]
        assert torch.equal(tensor, x)
        tensor.zero_()
    assert x.tolist() == [0.0, 1.0, 2.0]
    assert isinstance(taken[2], Pair)
    assert taken[1][1]["words"] == "three"  # type: ignore[index]
