"""What a network reads beside its layers, counted by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers.rest import Rest
from haq.models.resnet import digits_resnet, resnet20
from haq.quant.reach import reached
from haq.quant.uncovered import rest_of


def rest(network: nn.Module, sample: Tensor, without: str = "") -> Rest:
    network, layers = reached(network.eval(), sample)
    return rest_of(network, sample, [layer for layer in layers if layer.name.split(".")[0] != without])


@pytest.mark.parametrize(
    ("make", "sample"), [(digits_resnet, torch.rand(1, 1, 8, 8)), (resnet20, torch.rand(1, 3, 32, 32))]
)
def test_nothing_is_left_of_networks_whose_layers_cover_everything(make, sample) -> None:
    assert not rest(make(), sample)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.inner = kind(8, 16, batch_first=True, **options)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.inner(x)[0][..., :16])
        return y


@pytest.mark.parametrize(
    ("kind", "options", "products"),
    [
        (nn.LSTM, {}, 4 * 16 * (8 + 16)),
        (nn.LSTM, {"num_layers": 2}, 4 * 16 * (8 + 16 + 16 + 16)),
        (nn.GRU, {"bidirectional": True}, 2 * 3 * 16 * (8 + 16)),
        (nn.RNN, {}, 16 * (8 + 16)),
    ],
)
def test_a_recurrent_module_is_counted_with_its_products(kind, options, products) -> None:
    network = Recurrent(kind, **options)
    found = rest(network, torch.rand(1, 5, 8), without="inner")
    weights = sum(p.numel() for p in network.inner.parameters())
    assert (found.covered, found.weights, found.size_bytes) == (64, weights, 4 * weights)
    assert found.macs == 5 * products


class Unabsorbed(nn.Module):
    """The first norm follows no layer; a residual reads what the second one normalises; the third can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.BatchNorm2d(1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.stem, self.conv, self.fc = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        for norm in (self.first, self.second, self.third):
            nn.init.uniform_(norm.bias, 1, 2)

    def forward(self, x: Tensor, residual: bool = False) -> Tensor:
        x = self.stem(self.first(x))
        y = self.third(self.conv(F.relu(self.second(x))))
        return self.fc((y + x if residual else y).mean((2, 3)))  # type: ignore[no-any-return]


class Residual(Unabsorbed):
    def forward(self, x: Tensor, residual: bool = True) -> Tensor:
        return super().forward(x, residual)


def test_a_norm_that_no_layer_absorbs_is_a_slope_and_a_shift() -> None:
    found = rest(Unabsorbed(), torch.rand(1, 1, 3, 3))
    assert [(part.name, part.size_bytes) for part in found.parts] == [("first", 8)]
    assert "no quantized layer absorbs it" in found.said()


def test_norms_that_cannot_be_folded_are_counted() -> None:
    found = rest(Residual(), torch.rand(1, 1, 3, 3))
    assert {part.name: part.size_bytes for part in found.parts} == {"first": 8, "second": 32, "third": 32}


class Table(nn.Module):
    """Looks up rows in a way that no kind of layer knows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(50, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows.index_select(0, tokens.flatten()).view(*tokens.shape, -1)


class Tokens(nn.Module):
    """A table of rows, parameters and buffers of the network itself, attention, and a head that is not called."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = Table()
        self.position = nn.Parameter(torch.rand(1, 7, 16))
        self.register_buffer("scale", torch.rand(7, 16))
        self.register_buffer("made_anew", torch.ones(7, 16), persistent=False)
        self.qkv, self.norm = nn.Linear(16, 48), nn.LayerNorm(16)
        self.head, self.training_only = nn.Linear(16, 50, bias=False), nn.Linear(16, 999)
        if tied:
            self.head.weight = self.table.rows

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.position + self.made_anew
        q, k, v = self.qkv(x).view(1, 7, 3, 2, 8).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 7, 16)
        return self.head(self.norm(x) * self.scale)  # type: ignore[no-any-return]


def test_parameters_buffers_and_norms_are_counted_where_they_are_read() -> None:
    found = rest(Tokens(tied=False), torch.randint(50, (1, 7)))
    parts = {part.name: (part.kind, part.weights, part.size_bytes) for part in found.parts}
    assert parts == {
        "position": ("parameter", 112, 448),
        "scale": ("buffer", 0, 448),
        "table": ("Table", 800, 3200),
        "norm": ("LayerNorm", 32, 128),
    }
    assert found.covered == 16 * 48 + 16 * 50


def test_products_of_two_activations_are_counted() -> None:
    found = rest(Tokens(tied=False), torch.randint(50, (1, 7)))
    assert found.macs == 2 * (2 * 7 * 7 * 8)
    assert found.multiplied == 0


def test_a_weight_that_a_layer_shares_is_stored_beside_its_codes() -> None:
    found = rest(Tokens(tied=True), torch.randint(50, (1, 7)))
    table = next(part for part in found.parts if part.name == "table")
    assert (table.size_bytes, table.shared_bytes) == (3200, 3200)
    assert "layer head has codes of its own" in table.reason
    assert found.float_bytes == found.size_bytes - 3200


def test_a_layer_that_the_policy_leaves_out_is_left() -> None:
    found = rest(Tokens(tied=False), torch.randint(50, (1, 7)), without="qkv")
    left = next(part for part in found.parts if part.name == "qkv")
    assert (left.size_bytes, left.reason) == (4 * (16 * 48 + 48), "the policy leaves this layer out")
    assert found.macs == 2 * (2 * 7 * 7 * 8) + 7 * 16 * 48


def test_stored_types_are_kept() -> None:
    network = Tokens(tied=False)
    network.position = nn.Parameter(network.position.detach().double())
    found = {part.name: part.size_bytes for part in rest(network.double(), torch.randint(50, (1, 7))).parts}
    assert found["table"] == 2 * 3200


def test_tensors_in_one_block_of_memory_are_told_apart() -> None:
    network = Tokens(tied=False)
    block = torch.rand(800 + 112)
    network.table.rows = nn.Parameter(block[:800].view(50, 16))
    network.norm.weight = nn.Parameter(block[800:816])
    found = {part.name: part.size_bytes for part in rest(network, torch.randint(50, (1, 7))).parts}
    assert (found["table"], found["norm"]) == (3200, 128)


def test_a_bilinear_module_is_counted() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pairs, self.fc = nn.Bilinear(3, 4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pairs(x[:, :3], x[:, 3:]))  # type: ignore[no-any-return]

    assert rest(Pairs(), torch.rand(1, 7)).macs == 3 * 4 * 5
