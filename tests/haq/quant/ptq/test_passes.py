import pytest
import torch

from haq.errors import ConfigError, DataError
from haq.layers import quantizable_layers
from haq.policy import BitPolicy, LayerBits
from haq.quant.ptq import PASSES, apply_passes
from tests.haq.quant.ptq.networks import Inverted, images, quantized_pair, shaken


def policy() -> BitPolicy:
    return BitPolicy({name: LayerBits(3, 8) for name, _ in quantizable_layers(Inverted())})


def test_all_passes_come_closer_whatever_their_order() -> None:
    torch.manual_seed(0)
    model, batches, x = shaken(Inverted()), [images(32), images(32, 2)], images(64, 9)
    reports: list[tuple[int, int]] = []
    plain = apply_passes(model, policy(), "linear", batches, ())
    named = ("bias", "adaround", "cle")
    tuned = apply_passes(model, policy(), None, batches, named, progress=lambda *done: reports.append(done), steps=50)
    same = apply_passes(model, policy(), None, batches, named[::-1], steps=50)
    with torch.no_grad():
        expected = model(x)
        assert (tuned(x) - expected).norm() < 0.7 * (plain(x) - expected).norm()
        assert torch.equal(tuned(x), same(x))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_without_passes_it_is_plain_calibration() -> None:
    model, _, quantized = quantized_pair()
    with torch.no_grad():
        assert torch.equal(apply_passes(model, policy(), "linear", [images()], ())(images()), quantized(images()))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="unknown post-training pass 'adaruond' .did you mean 'adaround'"):
        apply_passes(Inverted(), policy(), None, [images()], ["adaruond"])
    with pytest.raises(DataError, match="no batches"):
        apply_passes(Inverted(), policy(), None, [], PASSES)
