"""Every internal of PyTorch that haq uses, one test each: its name says what an update of PyTorch broke."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import remove_spectral_norm, spectral_norm
from torch.nn.utils.weight_norm import weight_norm

from haq import torch_internals as internals
from haq.quant.quantizers.uniform import UniformQuantizer


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test__BatchNorm(kind: type[nn.Module]) -> None:
    assert issubclass(kind, internals.BatchNorm)
    assert not issubclass(nn.InstanceNorm2d, internals.BatchNorm)


def test__pytree() -> None:
    one, two = torch.ones(1), torch.ones(2)
    assert [*internals.tree_leaves({"a": [one], "b": (two, 3)})] == [one, two, 3]
    assert internals.tree_map(lambda value: 2 * value, {"a": [1], "b": (2, 3)}) == {"a": [2], "b": (4, 6)}


def test__python_dispatch() -> None:
    class Listing(internals.DispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with torch.no_grad(), Listing():
        nn.Linear(2, 3)(torch.ones(1, 2))
    assert "addmm" in seen


def test__should_skip_dynamo() -> None:
    code = (
        "import sys, torch\nfrom haq.torch_internals import DispatchMode\nclass Mode(DispatchMode):\n"
        "    def __torch_dispatch__(self, func, types, args=(), kwargs=None):\n        return func(*args)\n"
        "with Mode():\n    torch.ones(1) + 1\nassert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test__parameters_and__buffers_and__modules() -> None:
    norm, linear = nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False)
    assert internals.parameters_of(norm)["weight"] is norm.weight
    assert internals.parameters_of(linear)["bias"] is None
    assert internals.buffers_of(norm)["running_mean"] is norm.running_mean
    twice = nn.Sequential(linear, linear)
    assert list(internals.children_of(twice).values()) == [linear, linear]
    internals.children_of(twice)["1"] = norm
    assert twice[1] is norm
    assert all(isinstance(vars(norm)[name], dict) for name in internals.REGISTRIES)


def test_tensors_that_modules_share() -> None:
    norm, other, made = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Linear.__new__(nn.Linear)
    internals.share_tensors(other, norm)
    assert other.weight is norm.weight
    assert other.running_mean is norm.running_mean
    linear = nn.Linear(2, 3)
    made.__dict__.update(linear.__dict__, **internals.registries_for(linear))
    made.child = nn.Identity()
    made.bias = None
    assert not list(linear.children())
    assert linear.bias is not None
    assert made.weight is linear.weight


def test_trees_are_taken_apart_and_put_together() -> None:
    nested = ((1,), {"a": [2, None]})
    parts, structure = internals.tree_flatten(nested)
    assert parts == [1, 2, None]
    assert internals.tree_unflatten(["x", "y", None], structure) == (("x",), {"a": ["y", None]})


def test_hooks_are_forgotten_by_one_of_two_that_share_them() -> None:
    module = nn.Linear(1, 1)
    module.register_forward_hook(lambda *_: None)
    twin = copy.copy(module)
    internals.forget_forward_hooks(twin)
    assert not internals.has_forward_hooks(twin)
    assert internals.has_forward_hooks(module)


def test_GuardOnDataDependentSymNode(capfd: pytest.CaptureFixture[str]) -> None:
    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError) as error:
        torch.export.export(Looking(), (torch.ones(2),), strict=False)
    assert internals.decides_by_values(error.value)
    assert not internals.decides_by_values(ValueError("x.sum() is wrong"))
    capfd.readouterr()  # PyTorch prints the graph that it had


def test_fake_mode() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    like = FakeTensorMode().from_tensor(torch.ones(1))
    made = internals.faked(torch.ones(2, 3), like)
    assert (made.shape, made.fake_mode) == ((2, 3), like.fake_mode)  # type: ignore[attr-defined]


def test__non_persistent_buffers_set() -> None:
    module = nn.Module()
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("left", torch.ones(1), persistent=False)
    assert list(internals.unstored_buffers(module)) == ["left"]


def test__forward_hooks_and__forward_pre_hooks() -> None:
    after, before, plain = nn.Identity(), nn.Identity(), nn.Identity()
    after.register_forward_hook(lambda *_: None)
    before.register_forward_pre_hook(hook := lambda *_: None)
    assert [internals.has_forward_hooks(module) for module in (after, before, plain)] == [True, True, False]
    assert internals.pre_hooks(before) == [hook]


@pytest.mark.filterwarnings("ignore")
def test_hooks_that_compute_weights() -> None:
    """`WeightNorm`, `SpectralNorm`, `_tensor_name` and `_load_state_dict_pre_hooks`."""
    (normed,) = internals.pre_hooks(weight_norm(nn.Linear(2, 2)))
    assert isinstance(normed, internals.WeightNorm)
    assert normed.name == "weight"
    layer = spectral_norm(nn.Linear(2, 2))
    (hook,) = internals.pre_hooks(layer)
    assert isinstance(hook, internals.SpectralNorm)
    remove_spectral_norm(layer, hook.name)
    internals.forget_loading_hooks(layer)
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    (pruning,) = internals.pre_hooks(prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5))
    assert internals.pruned_name(pruning) == "weight"


def test__conv_forward() -> None:
    layer, x = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), torch.randn(1, 2, 5, 5)
    assert hasattr(nn.Conv2d, internals.CONV_FORWARD)
    assert torch.equal(internals.convolved(layer, x, layer.weight, layer.bias), layer(x))


@pytest.mark.parametrize(
    ("padding", "expected"), [(1, [1, 1, 1, 1]), ((1, 2), [2, 2, 1, 1]), ("same", [1, 2, 0, 0]), ("valid", [0] * 4)]
)
def test__reversed_padding_repeated_twice(padding: object, expected: list[int]) -> None:
    assert internals.padding_of(nn.Conv2d(1, 1, (1, 4), padding=padding)) == expected  # type: ignore[arg-type]


def test__load_from_state_dict() -> None:
    """A state with zero points goes into a quantizer without, and the other way round."""
    zeros = torch.zeros(3, dtype=torch.int32)
    for stored, own in ((zeros, None), (None, zeros)):
        source = UniformQuantizer(4, torch.ones(3), False, stored, "channel")
        target = UniformQuantizer(4, torch.ones(3), False, own, "channel")
        target.load_state_dict(source.state_dict())
        assert (target.zero_point is None) == (stored is None)


def test__version() -> None:
    values = torch.zeros(3)
    before = internals.writes(values)
    _ = values + 1
    assert internals.writes(values) == before
    values[0] = 1
    assert internals.writes(values) > before


def test__int_mm() -> None:
    a, b = torch.randint(-9, 9, (32, 16), dtype=torch.int8), torch.randint(-9, 9, (16, 8), dtype=torch.int8)
    assert torch.equal(internals.int8_product(a, b).long(), a.long() @ b.long())


def test_compiled_modules() -> None:
    """`OptimizedModule`, `_orig_mod`, `_compiled_call_impl` and `_torchdynamo_orig_callable`."""
    plain = nn.Linear(2, 2)
    assert internals.inside_name(plain) is None
    assert not internals.is_compiled(plain)
    wrapper = torch.compile(plain)
    name = internals.inside_name(wrapper)  # type: ignore[arg-type]
    assert name is not None
    assert getattr(wrapper, name) is plain
    called, replaced = nn.Linear(2, 2), nn.Linear(2, 2)
    called.compile()
    replaced.forward = torch.compile(replaced.forward)  # type: ignore[method-assign]
    for module in (called, replaced):
        assert internals.is_compiled(module)
        internals.uncompile(module)
        assert not internals.is_compiled(module)
        assert "forward" not in vars(module)


def test_parallel_wrappers() -> None:
    plain = nn.Linear(2, 2)
    wrapper = nn.DataParallel(plain)
    assert getattr(wrapper, str(internals.inside_name(wrapper))) is plain


def test_linear_and_in_projection_of_multi_head_attention_forward() -> None:
    attention, x = nn.MultiheadAttention(4, 2, batch_first=False), torch.randn(3, 1, 4)
    seen: list[Tensor] = []

    class Projection(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return F.linear(x, self.weight)

    def attended(function: object) -> Tensor:
        result: tuple[Tensor, Tensor] = function(  # type: ignore[operator]
            x, x, x, 4, 2, attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0,
            attention.out_proj.weight, attention.out_proj.bias, training=False,
        )  # fmt: skip
        return result[0]

    output = Projection(attention.out_proj.weight)
    found = attended(internals.attention_calling(None, output))
    assert len(seen) == 1, "the projection alone is called, and once"
    torch.testing.assert_close(found, attended(F.multi_head_attention_forward))
    inputs = [Projection(weight) for weight in attention.in_proj_weight.chunk(3)]
    found = attended(internals.attention_calling(inputs, output))
    assert len(seen) == 1 + 4, "every projection is called once"
    torch.testing.assert_close(found, attended(F.multi_head_attention_forward))


def test_flat_weights() -> None:
    lstm, cell = nn.LSTM(2, 3, proj_size=1), nn.LSTMCell(2, 3)
    assert internals.recurrent_names(lstm) == {
        "weight_ih_l0": "bias_ih_l0", "weight_hh_l0": "bias_hh_l0", "weight_hr_l0": "bias_hr_l0"
    }  # fmt: skip
    assert internals.recurrent_names(cell) == {"weight_ih": "bias_ih", "weight_hh": "bias_hh"}
    assert isinstance(getattr(lstm, internals.FLAT_WEIGHTS), list)
    internals.forget_flat_weights(lstm)
    assert internals.recurrent_names(lstm) == {}


def test_activation_relu_or_gelu_and_use_nested_tensor() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    encoder = nn.TransformerEncoder(layer, 1).eval()
    for module in (layer, encoder):
        assert internals.has_fused_kernel(module)
        internals.take_no_fused_kernel(module)
        assert not internals.has_fused_kernel(module)
    calls: list[nn.Module] = []
    internals.take_no_fused_kernel(encoder.layers[0])
    encoder.layers[0].linear1.forward = lambda x: calls.append(layer) or F.linear(x, layer.linear1.weight)  # type: ignore
    with torch.no_grad():
        encoder(torch.randn(1, 3, 4))
    assert calls, "the layers are called"


def test_the_import_takes_no_dynamo() -> None:
    program = "import sys, haq.torch_internals; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
