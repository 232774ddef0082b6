"""Small networks that call their layers in every way that we know of: reached, or refused with a reason."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

Make = Callable[[], nn.Module]


class Plain(nn.Module):
    """Two convolutions and a linear layer, called by attribute; all others compute the same, in another way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.c2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(64, 10)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.c2(F.relu(self.c1(x))))

    def pooled(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.body(x), 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.pooled(x))
        return y


class InList(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.convs = [self.c1, self.c2]

    def body(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x


class InDict(InList):
    def __init__(self) -> None:
        super().__init__()
        self.convs = {"first": (self.c1,), "second": [("named", self.c2)]}  # type: ignore[assignment]

    def body(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs["first"][0](x))  # type: ignore[call-overload]
        return F.relu(self.convs["second"][0][1](x))  # type: ignore[call-overload]


class AsKeys(InList):
    def __init__(self) -> None:
        super().__init__()
        self.convs = {self.c1: 1, self.c2: 2}  # type: ignore[assignment]


class InFunction(Plain):
    def __init__(self) -> None:
        super().__init__()
        c1, rest = self.c1, [self.c2]

        def run(x: Tensor) -> Tensor:
            x = F.relu(c1(x))
            for conv in rest:
                x = F.relu(conv(x))
            return x

        self.run = run

    def body(self, x: Tensor) -> Tensor:
        return self.run(x)


class InFunctions(InFunction):
    def __init__(self) -> None:
        super().__init__()
        steps = [(lambda x, conv=conv: F.relu(conv(x))) for conv in (self.c1, self.c2)]
        self.run = lambda x: functools.reduce(lambda value, step: step(value), steps, x)


class InPartial(InFunction):
    def __init__(self) -> None:
        super().__init__()
        self.run = functools.partial(lambda c1, x, c2: F.relu(c2(F.relu(c1(x)))), self.c1, c2=self.c2)  # type: ignore[assignment]


class InObject(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.held = types.SimpleNamespace(conv=self.c2)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.held.conv(F.relu(self.c1(x))))


class Keywords(Plain):
    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.c2.forward(input=F.relu(self.c1(input=x))))


class ReadsWeights(Plain):
    def body(self, x: Tensor) -> Tensor:
        return F.relu(F.conv2d(F.relu(self.c1(x)), self.c2.weight, self.c2.bias, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.pooled(x), self.fc.weight, self.fc.bias)


class AsksForTypes(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.c1.weight.dtype).type_as(self.fc.weight) + self.fc.weight.new_zeros(1))


class Compiled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.c2 = torch.compile(self.c2, backend="eager")  # type: ignore[assignment]


class Padded(nn.Conv2d):
    """TensorFlow's way: it pads by itself, then calls PyTorch's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class PaddedAlone(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Halves(nn.Conv2d):
    """Two products with parts of one weight."""

    def forward(self, x: Tensor) -> Tensor:
        left = F.conv2d(x[:, :2], self.weight[:, :2], None, padding=1)
        return left + F.conv2d(x[:, 2:], self.weight[:, 2:], self.bias, padding=1)


class ByMatmul(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t() + self.bias


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, bias=self.bias)


def _with(name: str, layer: nn.Module) -> nn.Module:
    network = Plain()
    layer.load_state_dict(getattr(network, name).state_dict())
    setattr(network, name, layer)
    return network


def _forward_put_on(bound: bool) -> nn.Module:
    network = Plain()
    conv = network.c2

    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)

    conv.forward = types.MethodType(forward, conv) if bound else (lambda x: forward(conv, x))  # type: ignore[method-assign]
    return network


def _compiled_in_place() -> nn.Module:
    network = Plain()
    network.compile(backend="eager")
    return network


def _compiled_forward() -> nn.Module:
    network = Plain()
    network.forward = torch.compile(network.forward, backend="eager")  # type: ignore[method-assign]
    return network


def _compiled_and_used() -> nn.Module:
    network: nn.Module = torch.compile(Plain().eval(), backend="eager")  # type: ignore[assignment]
    network(torch.zeros(1, 1, 8, 8))
    return network


SAME: dict[str, Make] = {
    **{cls.__name__: cls for cls in (
        InList, InDict, AsKeys, InFunction, InFunctions, InPartial, InObject, Keywords, ReadsWeights, AsksForTypes,
        Compiled,
    )},
    "padded": lambda: _with("c2", Padded(4, 4, 3)),
    "padded alone": lambda: _with("c2", PaddedAlone(4, 4, 3)),
    "halves": lambda: _with("c2", Halves(4, 4, 3, padding=1)),
    "by matmul": lambda: _with("fc", ByMatmul(64, 10)),
    "own": lambda: _with("fc", Own(64, 10)),
    "method put on a layer": lambda: _forward_put_on(bound=True),
    "function put on a layer": lambda: _forward_put_on(bound=False),
    "compiled": lambda: torch.compile(Plain(), backend="eager"),  # type: ignore[dict-item]
    "compiled and used": _compiled_and_used,
    "compiled in place": _compiled_in_place,
    "compiled forward": _compiled_forward,
    "data parallel": lambda: nn.DataParallel(Plain()),
}  # fmt: skip
"""Networks that compute what `Plain` computes, and must be quantized as it is."""


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5) * 0.3, self.bias)


class Scaled(nn.Conv2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((4, 1, 1, 1), 0.5))

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * self.gain, bias)


class Dynamic(nn.Conv2d):
    """Its weight depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * (1 + x.mean().tanh()), self.bias, padding=1)


class LowRank(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs) * 0.1), nn.Parameter(torch.randn(outputs, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.t() @ self.up.t()


class Adapted(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) + self.up(self.down(x))
        return y


class Scaling(nn.Conv2d):
    def forward(self, x: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


class TwoArguments(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.c2 = Scaling(4, 4, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.c2(F.relu(self.c1(x)), scale=0.5))


class Encoder(nn.Module):
    def __init__(self, mask: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, **{"batch_first": True, **options})
        self.embed, self.encoder, self.head = nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Linear(128, 10)
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        mask = torch.zeros(x.shape[:2], dtype=torch.bool) if self.mask else None
        y: Tensor = self.head(self.encoder(x, src_key_padding_mask=mask).flatten(1))
        return y


class Attention(nn.Module):
    def __init__(self, weights: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **options)
        self.embed, self.head, self.weights = nn.Linear(8, 16), nn.Linear(128, 10), weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        y: Tensor = self.head(self.attention(x, x, x, need_weights=self.weights)[0].flatten(1))
        return y


class WithDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(128, 10)
        self.transformer = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        y: Tensor = self.head(self.transformer(x, x).flatten(1))
        return y


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.fc, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.flatten(1)[:, :10].abs() * 3).long().clamp(max=9)
        y: Tensor = self.head(F.relu(self.fc(self.embed(tokens)))).mean(1)
        return y


class Auxiliary(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        pooled = self.pooled(x)
        return (self.fc(pooled), self.aux(pooled)) if self.training else self.fc(pooled)


class ChangesInput(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(2))


class KeepsFeatures(Plain):
    """Reads what a hook of its own kept, with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Tensor | None = None
        self.c1.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features = output

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        assert self.features is not None
        return y + self.features.mean()


class Noisy(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


class Shared(Plain):
    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.c2(super().body(x)))


def _computed(wrap: Callable[[Plain], object]) -> nn.Module:
    network = Plain()
    wrap(network)
    return network


def _kept_features() -> nn.Module:
    network = KeepsFeatures()
    network(torch.zeros(1, 1, 8, 8))
    return network


def _pruned(network: Plain) -> None:
    prune.l1_unstructured(network.c2, "weight", 0.5)
    prune.l1_unstructured(network.c2, "weight", 0.2)
    prune.l1_unstructured(network.fc, "bias", 0.5)


REACHED: dict[str, Make] = {
    **SAME,
    "standardised": lambda: _with("c2", Standardised(4, 4, 3, padding=1)),
    "scaled": lambda: _computed(lambda network: setattr(network, "c2", Scaled(4, 4, 3, padding=1))),
    "dynamic": lambda: _with("c2", Dynamic(4, 4, 3)),
    "low rank": lambda: _computed(lambda network: setattr(network, "fc", LowRank(64, 10))),
    "adapted": lambda: _computed(lambda network: setattr(network, "fc", Adapted(64, 10))),
    "two arguments": TwoArguments,
    "weight norm": lambda: _computed(lambda network: parametrizations.weight_norm(network.c2)),
    "weight norm of before": lambda: _computed(lambda network: weight_norm(network.c2)),
    "spectral norm": lambda: _computed(lambda network: parametrizations.spectral_norm(network.fc)),
    "spectral norm of before": lambda: _computed(lambda network: spectral_norm(network.c2)),
    "orthogonal": lambda: _computed(lambda network: parametrizations.orthogonal(network.fc)),
    "pruned": lambda: _computed(_pruned),
    "encoder": Encoder,
    "encoder with a mask": lambda: Encoder(mask=True),
    "encoder, norm first": lambda: Encoder(norm_first=True),
    "encoder, sequence first": lambda: Encoder(batch_first=False),
    "attention": Attention,
    "attention with weights": lambda: Attention(weights=True),
    "attention with biases": lambda: Attention(add_bias_kv=True),
    "attention, separate": lambda: Attention(kdim=16, vdim=16, add_zero_attn=True),
    "decoder": WithDecoder,
    "tied": Tied,
    "auxiliary head": Auxiliary,
    "changes its input": ChangesInput,
    "kept features": _kept_features,
    "noisy": Noisy,
    "shared": Shared,
    "traced": lambda: torch.fx.symbolic_trace(Plain()),
    "double": lambda: Plain().double(),
}
"""Networks whose layers are all reached."""


class ElsewhereToo(Plain):
    def body(self, x: Tensor) -> Tensor:
        return F.conv2d(super().body(x), self.c2.weight, self.c2.bias, padding=1)


class Cosine(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.pooled(x)), F.normalize(self.fc.weight))


class WithoutBias(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.pooled(x), self.fc.weight)


class Multiplied(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x) @ self.fc.weight.t() + self.fc.bias


_KEPT: list[nn.Module] = []


class Global(Plain):
    def __init__(self) -> None:
        super().__init__()
        _KEPT[:] = [self.c2]

    def body(self, x: Tensor) -> Tensor:
        return F.relu(_KEPT[0](F.relu(self.c1(x))))


class AsksForClass(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if type(self.fc) is nn.Linear else 1)


class PaddedTokens(Encoder):
    """Its fused kernel gives zeros for padded tokens, its layers do not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))
        mask = torch.arange(x.shape[1])[None] >= 5
        y: Tensor = self.head(self.encoder(x, src_key_padding_mask=mask.expand(len(x), -1)).flatten(1))
        return y


def _scripted_part() -> nn.Module:
    network = Plain()
    network.c2 = torch.jit.script(network.c2)
    return network


REFUSED: dict[str, tuple[Make, str]] = {
    "read elsewhere, too": (ElsewhereToo, r"layer 'c2': its weight is also read outside of it \(by conv2d\)"),
    "cosine": (Cosine, r"layer 'fc': its weight is read, but the layer is not called \(by normalize\)"),
    "without its bias": (WithoutBias, r"layer 'fc': its weight is read, but the layer is not called \(by linear\)"),
    "multiplied": (Multiplied, r"layer 'fc': its weight is read, but the layer is not called \(by matmul\)"),
    "global": (Global, r"layer 'c2' is called 1 times, but the quantizer of its weight 0 times: Global has another"),
    "asks for a class": (
        AsksForClass,
        r"gives different outputs with quantizers that change nothing, but its layers do",
    ),
    "padded tokens": (PaddedTokens, r"PaddedTokens gives different outputs when its layers are called one by one"),
    "scripted": (lambda: torch.jit.script(Plain()), r"the model is TorchScript.*give the nn.Module it was made from"),
    "scripted part": (_scripted_part, r"module 'c2' of Plain is TorchScript"),
}
"""Networks that cannot be reached, and why."""
