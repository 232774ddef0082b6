import torch
from torch import Tensor, nn

from haq.quant.compensation import Reads, round_layer
from haq.quant.compensation.care import Care, Shape, cares, rounding_plans, rounding_work
from haq.quant.effort import MACS_PER_SECOND
from haq.quant.schemes import get_scheme

WIDTHS = 7


def base(layers: int) -> dict[str, Shape]:
    """Layers of a transformer as wide as BERT-base."""
    inner = {"q": Shape(1, 768, 768), "k": Shape(1, 768, 768), "up": Shape(1, 768, 3072), "down": Shape(1, 3072, 768)}
    return {f"{number}.{name}": shape for number in range(layers) for name, shape in inner.items()}


def test_layers_of_small_networks_get_full_care() -> None:
    shapes = {f"conv{number}": Shape(1, 576, 64) for number in range(20)}
    assert set(cares(shapes, WIDTHS).values()) == {Care.FULL}


def test_the_dearest_layers_get_less_care_first() -> None:
    found = cares(base(3), WIDTHS)
    assert {name for name, care in found.items() if care is not Care.FULL} <= {"0.down", "1.down", "2.down"}
    assert Care.QUICK in found.values()


def test_rounding_takes_a_limited_time_however_large_the_network_is() -> None:
    for layers in (1, 12, 48):
        shapes = base(layers)
        found = cares(shapes, WIDTHS)
        work = sum(rounding_work(shape, WIDTHS, found[name]) for name, shape in shapes.items())
        assert work <= 90 * MACS_PER_SECOND


def test_care_costs_work() -> None:
    for shape in base(1).values():
        work = [rounding_work(shape, WIDTHS, care) for care in Care]
        assert work[0] == 0.0
        assert work == sorted(work)


def relative_error(layer: nn.Linear, x: Tensor, care: Care, blocks: int) -> Tensor:
    """Error of the outputs at 2, 3 and 4 bits."""
    reads = Reads(layer, 1, blocks=blocks)
    reads.add(x)
    weight = layer.weight.detach()
    quantizers = {bits: get_scheme("linear").weight_quantizer(weight, bits, reads.shown) for bits in (2, 3, 4)}
    rounded = round_layer(layer, quantizers, reads.moments(), care=care)
    changes = [one.quantizer(one.weight(weight)).detach() - weight for one in rounded.values()]
    centred = x - x.mean(0)
    return torch.stack([(centred @ change.t()).square().mean() for change in changes]) / layer(x).var()


def test_less_care_gives_more_error_but_less_than_none() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 40).requires_grad_(False), torch.randn(400, 96) @ torch.randn(96, 96)
    ways = [(Care.FULL, 1), (Care.QUICK, 1), (Care.QUICK, 3), (Care.NEAREST, 0)]
    errors = torch.stack([relative_error(layer, x, care, blocks) for care, blocks in ways])
    assert bool((errors.diff(dim=0) > 0).all()), errors


def test_blocks_of_columns_are_rounded_as_if_the_others_did_not_matter() -> None:
    """Blocks of uncorrelated columns lose nothing."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 5).requires_grad_(False)
    half = torch.randn(64, 4) @ torch.randn(4, 4)
    half = half - half.mean(0)
    x = torch.cat([torch.cat([half, half], 0), torch.cat([half, -half], 0)], 1)  # the halves are uncorrelated
    whole, blocks = (relative_error(layer, x, Care.QUICK, blocks) for blocks in (1, 2))
    torch.testing.assert_close(blocks, whole, rtol=0.05, atol=1e-6)


def test_layers_that_are_no_products_are_planned_too() -> None:
    plans = rounding_plans({"table": nn.Embedding(10, 4), "linear": nn.Linear(4, 2)}, WIDTHS)
    assert plans["table"].care is Care.NEAREST
    assert (plans["linear"].care, plans["linear"].blocks) == (Care.FULL, 1)
