import torch
from torch import nn

from haq.policy import BitPolicy, LayerBits
from haq.quant.preparation import prepare
from haq.quant.qat.rates import Rates, usual_rates


def network(bits: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    return prepare(model, BitPolicy({"1": LayerBits(bits, None), "3": LayerBits(bits, None)}))


def test_a_network_that_is_close_takes_smaller_steps_of_weights_and_grids() -> None:
    near, far = (usual_rates(network(4), share) for share in (0.95, 0.3))
    assert near.grids < far.grids
    assert near.weights < far.weights
    assert usual_rates(network(4), None) == far, "labels do not show how close it is"


def test_a_broken_network_moves_further_on_coarser_grids() -> None:
    assert usual_rates(network(2), 0.1).weights == 4 * usual_rates(network(4), 0.1).weights


def test_every_parameter_is_trained_once_grids_by_their_magnitude() -> None:
    model = network(3)
    groups = Rates(1e-3, 1e-2).groups(model)
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters) == len([*model.parameters()])
    assert groups[0]["lr"] == 1e-3
    assert all(group["lr"] == 1e-2 for group in groups[1:]), "the logarithm of a scale has magnitude 1"
