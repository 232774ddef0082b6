import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from haq.errors import ModelError
from haq.layers import quantizable_layers
from haq.policy import BitPolicy, LayerBits
from haq.quant.calibration import calibrate
from haq.quant.folding import fold_batch_norm
from haq.quant.preparation import prepare
from haq.quant.ptq.bias_correction import correct_bias, correct_bias_analytic, output_means
from haq.quant.ptq.statistics import clipped_normal_moments
from tests.haq.quant.ptq.networks import images, quantized_pair


def test_afterwards_every_channel_has_the_float_mean() -> None:
    _, folded, quantized = quantized_pair()
    batches = [images(32, 1), images(20, 2)]
    expected = output_means(folded, batches)

    def worst(network: nn.Module) -> float:
        found = output_means(network, batches)
        return max(float((found[name] - mean).abs().max()) for name, mean in expected.items())

    assert worst(correct_bias(quantized, folded, batches)) < 1e-4 < 1e-2 < worst(quantized)


def test_a_layer_without_bias_gets_one() -> None:
    _, folded, quantized = quantized_pair()
    quantized.get_submodule("classifier").bias = None  # type: ignore[assignment]
    assert correct_bias(quantized, folded, [images()]).get_submodule("classifier").bias is not None


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.floats(0.05, 3), st.floats(-1, 0), st.sampled_from([1.0, 6.0, float("inf")]))
def test_moments_of_the_clipped_normal(mean: float, std: float, low: float, high: float) -> None:
    """Agrees with 200,000 draws within five standard errors."""
    draws = (mean + std * torch.randn(200_000, generator=torch.Generator().manual_seed(0))).double().clamp(low, high)
    found, variance = clipped_normal_moments(torch.tensor([mean]), torch.tensor([std]), low, high)
    assert float(found) == pytest.approx(float(draws.mean()), abs=5 * float(draws.std()) / 200_000**0.5 + 1e-4)
    assert float(variance) == pytest.approx(float(draws.var()), rel=0.05, abs=1e-3)


def test_relu_of_a_standard_normal() -> None:
    """E = 1/√(2π), eq. 19 with β = 0, γ = 1; E x² = ½."""
    mean, variance = clipped_normal_moments(torch.zeros(1), torch.ones(1), 0.0, float("inf"))
    assert float(mean) == pytest.approx(0.398942, abs=1e-6)
    assert float(variance) == pytest.approx(0.5 - 0.398942**2, abs=1e-6)


def test_analytic_correction_comes_near_the_measured_one() -> None:
    """This holds for a layer after a batch norm and a ReLU, if the batch norm's statistics are right."""
    torch.manual_seed(0)
    model, _, _ = quantized_pair()
    x = images(256)
    for module in model.modules():  # momentum None: a plain average over all batches
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    model.eval()
    folded = fold_batch_norm(model, x[:1])
    names = [name for name, _ in quantizable_layers(folded)]
    calibration = calibrate(folded, [x], [3])
    policy = BitPolicy({name: LayerBits(3, None) for name in names})
    quantized = prepare(folded, policy, calibration=calibration)
    corrected = correct_bias_analytic(quantized, model, x[:1])
    expected = output_means(folded, [x])["expand.0"]
    before, after = (output_means(net, [x])["expand.0"] - expected for net in (quantized, corrected))
    assert after.norm() < before.norm()
    changed = corrected.get_submodule("stem.0").bias
    assert torch.equal(changed, quantized.get_submodule("stem.0").bias), "there are no statistics of images"  # type: ignore[arg-type]


def test_networks_must_belong_together() -> None:
    _, _, quantized = quantized_pair()
    other = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ModelError, match="layer 'stem.0' is not in the float network"):
        correct_bias(quantized, other, [images()])
    with pytest.raises(ModelError, match="layer 'stem.0' is not in the float network"):
        correct_bias_analytic(quantized, other, images(1))
