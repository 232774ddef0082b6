import pytest
import torch
from torch import nn

from haq.layers import quantizable_layers
from haq.quant.calibration import calibrate, input_samples

LAYERS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "strided": nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid", dilation=2, bias=False),
    "same": nn.Conv2d(4, 6, 2, padding="same", bias=False),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_reads_times_weights_are_outputs_of_the_layer(name: str) -> None:
    layer = LAYERS[name]
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    reads = input_samples(nn.Sequential(layer), [x])["0"].reads
    weight = layer.weight.detach().flatten(1).view(layer.groups, -1, reads.shape[1])
    columns = (weight @ reads).flatten(0, 1).T
    outputs = layer(x).detach().transpose(0, 1).flatten(1).T
    nearest = torch.cdist(columns, outputs).amin(1)
    assert reads.shape[0] == layer.groups
    assert float(nearest.max()) < 5e-3, "every column belongs to one position of the output"


def test_reads_of_a_linear_layer_are_its_inputs() -> None:
    x = torch.randn(3, 5, 7)
    reads = input_samples(nn.Sequential(nn.Linear(7, 2)), [x])["0"].reads
    assert reads.shape[:2] == (1, 7)
    assert {tuple(column) for column in reads[0].T.tolist()} <= {tuple(row) for row in x.reshape(-1, 7).tolist()}


def test_calibration_is_the_same_every_time() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    batches = [torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number)) for number in range(3)]
    one, other = (calibrate(model, batches, [3]) for _ in range(2))
    for name, layer in quantizable_layers(model):
        assert torch.equal(one[name].weights[3].weight(layer.weight), other[name].weights[3].weight(layer.weight))
