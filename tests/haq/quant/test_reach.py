from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from haq.errors import ModelError
from haq.layers import quantizable_layers, reachable, run_sample
from haq.layers.running import same_randomness
from haq.policy import BitPolicy, LayerBits
from haq.quant import calibrate, prepare
from haq.quant.calibration import input_samples
from haq.quant.compensation import is_product
from haq.quant.reach import reached

from ..networks import REACHED, REFUSED, SAME, Plain
from ..several_weights import SEVERAL_WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore")


NETWORKS = {**REACHED, **SEVERAL_WEIGHTS}


def inputs(network: nn.Module, count: int = 4) -> Tensor:
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x.double() if next(network.parameters()).dtype == torch.float64 else x


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with same_randomness():
        result: Tensor = run_sample(network, x)
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_one_bit_in_a_layer_changes_what_the_network_gives_and_eight_hardly_do(name: str) -> None:
    network = NETWORKS[name]().eval()
    x = inputs(network)
    expected = outputs(network, x)
    _, layers = reached(network, x[:1])
    names, kinds = [layer.name for layer in layers], {layer.name: layer.kind for layer in layers}
    calibration = calibrate(network, [x], [1, 8])
    for layer in names:
        floats = {other: LayerBits(None, None) for other in names}
        one = prepare(network, BitPolicy({**floats, layer: LayerBits(1, None)}), calibration=calibration).eval()
        assert not torch.allclose(outputs(one, x), expected), f"weights of {layer}"
        if kinds[layer] == "embedding":  # its input is indices
            continue
        one = prepare(network, BitPolicy({**floats, layer: LayerBits(None, 1)}), calibration=calibration).eval()
        assert not torch.allclose(outputs(one, x), expected), f"inputs of {layer}"
    eight = prepare(network, BitPolicy.uniform(names, 8), calibration=calibration).eval()
    assert (outputs(eight, x) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", SAME)
def test_the_same_network_called_in_another_way_is_quantized_alike(name: str) -> None:
    x = inputs(Plain())
    policy = BitPolicy({"c1": LayerBits(3, 4), "c2": LayerBits(2, 3), "fc": LayerBits(4, 2)})
    plain = Plain().eval()
    calibration, read, quantized = calibrate(plain, [x], [2, 3, 4]), [], []
    for network in (plain, SAME[name]().eval()):
        network, layers = reached(network, x[:1])
        assert [layer.name for layer in layers] == ["c1", "c2", "fc"]
        read.append(input_samples(network, [x]))
        quantized.append(outputs(prepare(network, policy, calibration=calibration).eval(), x))
    assert torch.allclose(*quantized, rtol=1e-5, atol=1e-6)
    modules = dict(quantizable_layers(network))
    for layer, samples in read[0].items():  # weights are rounded with these
        assert samples.moments is not None
        if (moments := read[1][layer].moments) is None:
            assert not is_product(modules[layer]), (
                "a layer whose product cannot be intercepted keeps rounding to the nearest"
            )
        else:
            assert torch.allclose(samples.moments.gram, moments.gram, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_reached_is_refused_with_the_layer_and_the_reason(name: str) -> None:
    make, message = REFUSED[name]
    network = make().eval()
    with pytest.raises(ModelError, match=message) as caught:
        reached(network, inputs(network)[:1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_opened_leaves_the_given_one_as_it_was_and_travels(name: str) -> None:
    network = NETWORKS[name]().eval()
    x = inputs(network)
    expected, state = outputs(network, x), copy.deepcopy(list(network.state_dict().items()))
    opened, _ = reached(network, x[:1])
    assert torch.equal(outputs(network, x), expected)
    assert [key for key, _ in state] == list(network.state_dict())
    assert torch.allclose(outputs(opened, x), expected, rtol=1e-4, atol=1e-5)
    assert reachable(opened, x[:1]) is opened
    assert torch.equal(outputs(copy.deepcopy(opened), x), outputs(opened, x))


@pytest.mark.parametrize("name", ["encoder", "padded", "ReadsWeights", "changes its input", "halves", "lstm", "bare"])
def test_what_is_added_survives_pickling(name: str) -> None:
    opened, _ = reached(NETWORKS[name]().eval(), inputs(Plain())[:1])
    x = inputs(opened)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(opened)), x), outputs(opened, x))


def test_a_network_with_nothing_in_between_is_returned_itself() -> None:
    network = Plain().eval()
    assert reached(network, inputs(network)[:1])[0] is network
