from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from haq.layers import quantizable_layers, reachable, trace

FORMS = list(itertools.product((False, True), repeat=5))


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@pytest.mark.parametrize(("batch_first", "bias", "add_bias_kv", "add_zero_attn", "sizes"), FORMS)
def test_every_form_gives_what_pytorch_gives(
    batch_first: bool, bias: bool, add_bias_kv: bool, add_zero_attn: bool, sizes: bool
) -> None:
    own = {"kdim": 6, "vdim": 10} if sizes else {}
    module = attention(
        batch_first=batch_first, bias=bias, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn, **own
    )  # fmt: skip
    opened = reachable(module)
    assert reachable(opened) is opened
    q, k, v = torch.randn(5, 4, 8), torch.randn(5, 4, own.get("kdim", 8)), torch.randn(5, 4, own.get("vdim", 8))
    for inputs in ((q, k, v), (q[0], k[0], v[0]), *([] if sizes else [(q, q, q), (q, k, k)])):
        length = inputs[0].shape[1 if batch_first and inputs[0].dim() == 3 else 0]
        causal = torch.ones(length, length).triu(1).bool()
        padding = torch.zeros(20 // length, length, dtype=torch.bool) if inputs[0].dim() == 3 else causal[0] & False
        padding[..., -1] = True
        for options in (
            {}, {"need_weights": False}, {"average_attn_weights": False}, {"attn_mask": causal},
            {"attn_mask": causal, "is_causal": True, "need_weights": False}, {"attn_mask": torch.randn(length, length)},
            {"key_padding_mask": padding},
        ):  # fmt: skip
            found, expected = opened(*inputs, **options), module(*inputs, **options)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_queries_keys_and_values_have_layers_of_their_own() -> None:
    module = attention(batch_first=True)
    layers = dict(quantizable_layers(reachable(module)))
    assert sorted(layers) == ["k_proj", "out_proj", "q_proj", "v_proj"]
    packed = torch.cat([layers[name].weight for name in ("q_proj", "k_proj", "v_proj")])
    assert torch.equal(packed, module.in_proj_weight)


def test_states_of_before_load_and_copies_travel() -> None:
    x = torch.randn(4, 2, 8)
    for options in ({}, {"kdim": 8, "vdim": 8}, {"bias": False}):
        module = attention(**options)
        opened = reachable(nn.MultiheadAttention(8, 2, **options))
        opened.load_state_dict(module.state_dict())
        again = reachable(nn.MultiheadAttention(8, 2, **options))
        again.load_state_dict(opened.state_dict())
        for other in (opened, again, copy.deepcopy(opened), pickle.loads(pickle.dumps(opened))):
            torch.testing.assert_close(other(x, x, x), module(x, x, x), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_layer() -> None:
    opened, x = reachable(attention()).train(), torch.randn(4, 2, 8)
    opened(x, x, x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in opened.parameters())


def test_layers_of_a_module_with_samples_first_keep_them_first() -> None:
    opened, x, shapes = reachable(attention(batch_first=True)), torch.randn(5, 4, 8), dict[str, Any]()
    for name, layer in quantizable_layers(opened):
        layer.register_forward_hook(lambda _, given, __, name=name: shapes.update({name: tuple(given[0].shape)}))
    opened(x, x, x)
    assert shapes == dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (5, 4, 8))


class Own(nn.MultiheadAttention):
    """Multiplies with the packed weight itself."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        y: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v))
        return y


def test_a_subclass_that_uses_the_weights_itself_keeps_them() -> None:
    module, x = Own(8, 2).eval(), torch.randn(1, 4, 8)
    opened = reachable(module, x)
    assert torch.equal(opened(x), module(x))
    assert [spec.name for spec in trace(module, x)] == ["out_proj"]
