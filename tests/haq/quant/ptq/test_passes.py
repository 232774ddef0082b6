import pytest
import torch
from torch import Tensor, nn

from haq.errors import ConfigError, DataError
from haq.layers import quantizable_layers
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.preparation import prepare
from haq.quant.ptq import PASSES, apply_passes
from tests.haq.quant.graph.networks import CountingPixels, Tokens, tokens
from tests.haq.quant.ptq.networks import Inverted, images, shaken


def policy() -> BitPolicy:
    return BitPolicy({name: LayerBits(3, 8) for name, _ in quantizable_layers(Inverted())})


def test_all_passes_come_closer_whatever_their_order() -> None:
    torch.manual_seed(0)
    model, batches, x = shaken(Inverted()), [images(32), images(32, 2)], images(64, 9)
    reports: list[tuple[int, int]] = []
    plain = prepare(model, policy(), calibration=calibrate(model, batches, [3, 8], compensated=False)).eval()
    named = ("bias", "adaround", "cle")
    tuned = apply_passes(model, policy(), None, batches, named, progress=lambda *done: reports.append(done), steps=50)
    same = apply_passes(model, policy(), None, batches, named[::-1], steps=50)
    with torch.no_grad():
        expected = model(x)
        assert (tuned(x) - expected).norm() < 0.8 * (plain(x) - expected).norm()
        assert torch.equal(tuned(x), same(x))
    assert reports == [(1, 3), (2, 3), (3, 3)]


def test_without_passes_it_is_plain_calibration() -> None:
    torch.manual_seed(0)
    model = shaken(Inverted())
    quantized = prepare(model, policy(), calibration=calibrate(model, [images()], [3, 8]))
    with torch.no_grad():
        assert torch.equal(
            apply_passes(model, policy(), "linear", [images()], ())(images()), quantized.eval()(images())
        )


def test_errors() -> None:
    with pytest.raises(ConfigError, match="unknown post-training pass 'adaruond' .did you mean 'adaround'"):
        apply_passes(Inverted(), policy(), None, [images()], ["adaruond"])
    with pytest.raises(DataError, match="no batches"):
        apply_passes(Inverted(), policy(), None, [], PASSES)


class _Scaled(nn.Module):
    """Normalises its input, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_place = in_place
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(-0.5).mul_(2.0) if self.in_place else (x + 0.5) * 2.0
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


@pytest.mark.parametrize("passes", [(), ("bias",), ("cle",), ("adaround",), ("cle", "adaround", "bias")])
def test_a_network_that_changes_its_input_is_quantized_as_one_that_copies_it(passes: tuple[str, ...]) -> None:
    results = []
    for in_place in (False, True):
        batches = list(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(8))
        kept = [batch.clone() for batch in batches]
        policy = BitPolicy.uniform(["first", "second", "head"], 4)
        quantized = apply_passes(_Scaled(in_place).eval(), policy, "linear", batches, passes, steps=5)
        assert all(torch.equal(a, b) for a, b in zip(batches, kept, strict=True)), (
            "the caller's tensors are not changed"
        )
        with torch.no_grad():
            results.append(quantized(kept[0].clone()))
    assert torch.allclose(*results, atol=1e-6)


@pytest.mark.parametrize("passes", [("adaround",), ("bias-analytic",), ("cle", "adaround", "bias")])
def test_a_graph_from_either_tracer_gives_the_same_result(passes: tuple[str, ...]) -> None:
    model, other = shaken(Inverted()), CountingPixels().eval()
    other.load_state_dict(model.state_dict())
    batches = [images(16), images(7, 2)]
    results = [apply_passes(network, policy(), None, batches, passes, steps=5) for network in (model, other)]
    with torch.no_grad():
        torch.testing.assert_close(results[0](batches[0]), results[1](batches[0]))


def test_networks_for_tokens_are_tuned_block_by_block() -> None:
    network, batches = Tokens().eval(), [tokens(32), tokens(5)]
    reports: list[tuple[int, int]] = []
    policy = BitPolicy.uniform([name for name, _ in quantizable_layers(network)], 4)
    plain = apply_passes(network, policy, None, batches, ())
    tuned = apply_passes(
        network, policy, None, batches, ("adaround", "bias"), steps=60, progress=lambda *done: reports.append(done)
    )
    assert reports[-1] == (4, 4), "the tables, attention, the two layers behind it, and the head"
    with torch.no_grad():
        expected = network(batches[0])
        assert (tuned(batches[0]) - expected).norm() < (plain(batches[0]) - expected).norm()
