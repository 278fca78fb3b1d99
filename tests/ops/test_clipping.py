"""Clipped values, bit for bit: the op that clips lists, and clip_weights_."""

from __future__ import annotations

import math
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

import fastgan
from fastgan.ops import check_op, clip_tensors_, op_paths
from fastgan.ops.define import DEFINED

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SPECIALS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, -0.5, 1e-40, -1e-40, 6e-8, 65504.0]
INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def clip_(tensor, min, max):
    clip_tensors_([tensor], min, max)


def random_values(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    special = torch.tensor(SPECIALS, dtype=torch.float64)
    choice = torch.randint(0, len(SPECIALS), values.shape, generator=generator)
    takes_special = torch.rand(values.shape, generator=generator) < 0.2
    return torch.where(takes_special, special[choice], values).to(dtype)


def clamped(values, lower, upper):
    """torch's answer, computed on the CPU over a contiguous copy."""
    return torch.clamp(values.detach().cpu().contiguous(), lower, upper)


def assert_same_bits(actual, expected):
    """Equal bit for bit (so -0.0 is not 0.0), but for the payload of a NaN."""
    actual = actual.detach().cpu().contiguous()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    as_integer = INTEGER_OF_SIZE[actual.element_size()]
    both_nan = actual.isnan() & expected.isnan()
    same = actual.view(as_integer) == expected.contiguous().view(as_integer)
    wrong = ~(same | both_nan)
    assert not wrong.any(), f"{actual[wrong][:5]} != {expected[wrong][:5]}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "bounds",
    [
        (-0.01, 0.01),
        (0.0, 0.5),
        (-0.5, -0.0),
        (0.25, 0.25),
        (-math.inf, 0.1),
        (-0.1, math.inf),
        (-math.inf, math.inf),
        (math.inf, math.inf),
        (1 / 3, 2 / 3),
    ],
)
def test_values_are_those_of_torch_clamp_bit_for_bit(device, dtype, bounds):
    values = random_values((4097,), dtype)
    actual = values.to(device, copy=True)
    clip_(actual, *bounds)
    assert_same_bits(actual, clamped(values, *bounds))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bounds", [(-0.01, 0.01), (-3e-7, 2e-6), (-60000.0, 1.5), (0.0, math.inf)])
def test_every_16_bit_pattern_is_right(device, dtype, bounds):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = patterns.view(dtype)
    actual = values.to(device, copy=True)
    clip_(actual, *bounds)
    assert_same_bits(actual, clamped(values, *bounds))


@hypothesis.settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    size=st.one_of(st.integers(0, 300), st.integers(0, 70000)),
    start=st.integers(0, 17),
    dtype=st.sampled_from(DTYPES),
    bounds=st.tuples(st.floats(-2, 2, allow_nan=False), st.floats(-2, 2, allow_nan=False)).map(
        sorted
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_size_and_alignment_is_right_and_nothing_around_is_touched(
    device, size, start, dtype, bounds, seed
):
    values = random_values((start + size + 19,), dtype, seed)
    actual = values.to(device, copy=True)
    clip_(actual[start : start + size], *bounds)
    expected = values.clone()
    expected[start : start + size] = clamped(values[start : start + size], *bounds)
    assert_same_bits(actual, expected)


@st.composite
def strided_views(draw):
    """How to make a view without overlap: base shape, a permutation, a slice per dimension."""
    shape = draw(st.lists(st.integers(0, 7), min_size=0, max_size=5))
    permutation = draw(st.permutations(range(len(shape))))
    slices = [
        slice(draw(st.integers(0, 2)), None, draw(st.integers(1, 3))) for _ in range(len(shape))
    ]
    return shape, permutation, slices


@hypothesis.settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(view=strided_views(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 10**6))
def test_every_strided_view_is_right_and_nothing_around_is_touched(device, view, dtype, seed):
    shape, permutation, slices = view

    def take(base):
        return base.permute(permutation)[tuple(slices)]

    values = random_values(shape, dtype, seed)
    actual = values.to(device, copy=True)
    clip_(take(actual), -0.3, 0.2)
    expected = values.clone()
    take(expected).copy_(clamped(take(values), -0.3, 0.2))
    assert_same_bits(actual, expected)


LAYOUTS = {
    "0-d": lambda t: t[0, 0, 0, 0],
    "empty": lambda t: t[:0],
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3),
    "rows apart": lambda t: t[:, :, :, :5],
    "every other": lambda t: t[..., ::2],
    "diagonal": lambda t: t.diagonal(dim1=2, dim2=3),
    "size-1 dimension of odd stride": lambda t: t.as_strided((3, 1, 8), (64, 7, 1)),
    "large enough for several threads": lambda t: t.repeat(100, 4, 3, 1)[:, :, ::2],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_right(device, dtype, layout):
    actual = LAYOUTS[layout](random_values((4, 3, 8, 8), dtype).to(device))
    expected = clamped(actual, -0.1, 0.2)
    clip_(actual, -0.1, 0.2)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("flush", [False, True])
def test_flush_to_zero_mode_changes_no_16_bit_value(flush):
    values = torch.arange(-1023, 1024, dtype=torch.int16).abs().view(torch.float16)  # subnormals
    actual = values.clone()
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor has no flush-to-zero mode")
    try:
        clip_(actual, 2.0**-24 * 10, 2.0**-24 * 500)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(actual, clamped(values, 2.0**-24 * 10, 2.0**-24 * 500))


def test_number_of_threads_is_honoured():
    """By the processor time of the other threads, which no load on the machine changes much."""
    script = (
        "import time, torch, fastgan\n"
        "values = torch.randn(4_000_000)\n"
        "for count in (1, 2):\n"
        "    torch.set_num_threads(count)\n"
        "    process, main = time.process_time(), time.thread_time()\n"
        "    for _ in range(30):\n"
        "        torch.ops.fastgan.clip_tensors_([values], [], -0.1, 0.1, None)\n"
        "    main = time.thread_time() - main\n"
        "    print((time.process_time() - process - main) / main)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    with_one, with_two = map(float, result.stdout.split())
    assert with_one < 0.1
    assert with_two > 0.3


def test_number_of_threads_does_not_change_the_result():
    values = random_values((1_000_003,), torch.float32)
    expected = clamped(values, -0.1, 0.1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            actual = values.clone()
            clip_(actual, -0.1, 0.1)
            assert_same_bits(actual, expected)
    finally:
        torch.set_num_threads(threads)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn]
)
def test_other_dtypes_are_refused_by_name(device, dtype):
    tensor = torch.zeros(3, device=device).to(dtype)
    with pytest.raises(RuntimeError, match=str(dtype).replace(".", r"\.")):
        clip_(tensor, -1.0, 1.0)


@pytest.mark.parametrize("bounds", [(1.0, -1.0), (math.nan, 1.0), (-1.0, math.nan)])
def test_bounds_out_of_order_or_nan_are_refused_and_nothing_is_written(device, bounds):
    tensor = torch.tensor([-5.0, 5.0], device=device)
    with pytest.raises(RuntimeError, match="min"):
        clip_(tensor, *bounds)
    assert tensor.tolist() == [-5.0, 5.0]


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 65510.0), (torch.bfloat16, 1e39), (torch.float32, 1e300)]
)
def test_finite_bounds_beyond_the_dtype_are_refused_as_by_torch(device, dtype, bound):
    tensor = torch.zeros(3, dtype=dtype, device=device)
    with pytest.raises(RuntimeError, match="overflow"):
        torch.zeros(3, dtype=dtype).clamp_(-bound, bound)
    with pytest.raises(RuntimeError, match=f"beyond what {dtype} holds"):
        clip_(tensor, -bound, bound)


def test_expanded_tensor_is_refused_as_by_torch(device):
    base = torch.tensor([[3.0], [4.0]], device=device)
    plain = DEFINED["clip_tensors_"].reference
    for operation in (
        torch.Tensor.clamp_,
        clip_,
        lambda tensor, low, high: plain([tensor], [], low, high, None),
    ):
        with pytest.raises(RuntimeError, match="single memory location"):
            operation(base.expand(2, 3), -1.0, 1.0)
    assert base.tolist() == [[3.0], [4.0]]
    clip_(base.expand(2, 0), -1.0, 1.0)  # no element, no overlap


def test_gradient_is_never_lost_in_silence(device):
    weight = torch.full((3,), 2.0, device=device, requires_grad=True)
    product = weight * 2
    with pytest.raises(RuntimeError, match="no gradient"):
        clip_(product, -1.0, 1.0)
    product.sum().backward()
    assert weight.grad.tolist() == [2.0] * 3


def test_forward_mode_tangent_is_never_lost_in_silence(device):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(
            torch.ones(3, device=device), torch.ones(3, device=device)
        )
        with pytest.raises(RuntimeError, match="tangent"):
            clip_(dual, -0.5, 0.5)


def test_func_grad_is_refused(device):
    def loss(x):
        y = x * 1.0
        clip_(y, -0.5, 0.5)
        return y.sum()

    with pytest.raises(RuntimeError, match="no gradient"):
        torch.func.grad(loss)(torch.ones(3, device=device))


def test_backward_through_overwritten_values_raises(device):
    weight = torch.full((3,), 2.0, device=device, requires_grad=True)
    output = (weight * weight).sum()
    with torch.no_grad():
        clip_(weight, -1.0, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_inference_mode_works_and_counts_writes_to_ordinary_tensors(device):
    ordinary = torch.full((3,), 2.0, device=device)
    version = ordinary._version
    with torch.inference_mode():
        inference = torch.full((3,), 2.0, device=device)
        clip_(inference, -1.0, 1.0)
        clip_(ordinary, -1.0, 1.0)
    assert inference.tolist() == ordinary.tolist() == [1.0] * 3
    assert ordinary._version == version + 1


# --- torch's machinery ----------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(device, dynamic):
    def step(weight, gradient):
        with torch.no_grad():
            weight.sub_(gradient, alpha=0.1)
            clip_tensors_([weight, gradient], -0.01, 0.01)
            clip_tensors_([weight], -0.005, 0.01)
        return weight * 2

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (5, 9):
        weight = torch.randn(size, 3, device=device)
        gradient = torch.randn(size, 3, device=device)
        expected_weight = (weight - 0.1 * gradient).clamp(-0.005, 0.01)
        clipped_gradient = gradient.clamp(-0.01, 0.01)
        output = compiled(weight, gradient)
        torch.testing.assert_close(weight, expected_weight)
        torch.testing.assert_close(gradient, clipped_gradient)
        torch.testing.assert_close(output, expected_weight * 2)


def test_paths_are_reported_and_checks_pass(device):
    rows = {(row.op, row.device): row for row in op_paths()}
    row = rows["clip_tensors_", device.type]
    info = fastgan.build_info()
    expected = device.type if info.native and (device.type == "cpu" or info.cuda) else "aten"
    assert row.path == expected
    assert row.usable
    check_op("clip_tensors_", device)


def test_check_of_unknown_op_names_the_known_ones():
    with pytest.raises(fastgan.FastganError, match="clip_tensors_"):
        check_op("no_such_op", "cpu")


# --- CUDA alone -----------------------------------------------------------------------------------


@pytest.mark.gpu
def test_runs_on_the_current_stream(cuda):
    """On another stream than torch's current one, the clip would overtake the slow work before."""
    stream = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device=cuda)
    target = torch.zeros(1 << 20, device=cuda)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            slow = slow @ slow
        target.fill_(5.0)
        clip_(target, -1.0, 1.0)
    stream.synchronize()
    assert target.unique().tolist() == [1.0]


@pytest.mark.gpu
def test_is_captured_in_a_cuda_graph_and_replays(cuda):
    values = torch.full((1 << 16,), 5.0, device=cuda)
    strided = torch.full((64, 64), 5.0, device=cuda)[:, ::2]
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):  # the first launch loads the kernel, which capture forbids
        clip_(values, -1.0, 1.0)
        clip_(strided, -1.0, 1.0)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        clip_(values, -1.0, 1.0)
        clip_(strided, -1.0, 1.0)
    for value in (7.0, -7.0):
        values.fill_(value)
        strided.fill_(value)
        graph.replay()
        assert values.unique().tolist() == strided.unique().tolist() == [math.copysign(1, value)]


@pytest.mark.gpu
def test_current_device_is_left_alone(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    tensor = torch.full((100,), 5.0, device="cuda:1")
    with torch.cuda.device(0):
        clip_(tensor, -1.0, 1.0)
        assert torch.cuda.current_device() == 0
    assert tensor.unique().tolist() == [1.0]


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(cuda):
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 6 GiB of free GPU memory")
    count = 2**31 + 37
    tensor = torch.full((count,), 5.0, dtype=torch.bfloat16, device=cuda)
    clip_(tensor, -1.0, 1.0)
    assert tensor[:100].eq(1).all()
    assert tensor[-100:].eq(1).all()
    every_other = torch.full((2, 2**30 + 5), 5.0, dtype=torch.bfloat16, device=cuda)
    clip_(every_other.t(), -1.0, 1.0)
    assert every_other[1, -50:].eq(1).all()


# --- clip_weights_ --------------------------------------------------------------------------------


def critic_like(device):
    return nn.Sequential(
        nn.Conv2d(3, 8, 4),
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 1),
    ).to(device)


def test_clip_weights_clips_every_parameter_and_no_buffer(device):
    critic = critic_like(device)
    critic[1].running_var.fill_(3.0)
    expected = [clamped(p, -0.01, 0.01) for p in critic.parameters()]
    assert fastgan.clip_weights_(critic, 0.01) is None
    for parameter, value in zip(critic.parameters(), expected, strict=True):
        assert_same_bits(parameter, value)
        assert parameter.requires_grad
    assert critic[1].running_var.unique().tolist() == [3.0]


def test_clip_weights_takes_a_pair_and_iterables(device):
    weights = [torch.randn(4, device=device), torch.randn(3, device=device).double()]
    expected = [clamped(w, -0.1, 0.3) for w in weights]
    fastgan.clip_weights_((w for w in weights), (-0.1, 0.3))
    for weight, value in zip(weights, expected, strict=True):
        assert_same_bits(weight, value)
    fastgan.clip_weights_(weights[0], 0)
    assert weights[0].abs().max() == 0


def test_clip_weights_leaves_norm_layers_out_on_request(device):
    critic = critic_like(device)
    fastgan.clip_weights_(critic, 0.01, include_norm=False)
    assert critic[0].weight.abs().max() <= 0.0100001
    for norm in (critic[1], critic[2], critic[4]):
        assert norm.weight.unique().tolist() == [1.0]
    fastgan.clip_weights_(critic, 0.01)
    assert critic[1].weight.max() <= 0.0100001


def test_clip_weights_clips_tied_weights_once_and_shared_ones_always():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    norm = nn.LayerNorm(3)
    norm.bias = first.bias
    model = nn.ModuleList([norm, first, second])
    with torch.no_grad():
        first.bias.fill_(5.0)
    version = first.weight._version
    fastgan.clip_weights_(model, 0.01, include_norm=False)
    assert first.weight._version == version + 1
    assert first.bias.max() <= 0.0100001


def python_calls(function):
    """How many calls of Python functions a call of `function` makes."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("as_module", [False, True])
def test_clip_weights_asks_nothing_of_each_tensor_in_python(as_module):
    few, many = (
        nn.ParameterList([nn.Parameter(torch.randn(3)) for _ in range(n)]) for n in (3, 50)
    )
    if not as_module:
        few, many = list(few), list(many)
    fastgan.clip_weights_(few, 0.01)  # whatever the first call alone does
    expected = python_calls(lambda: fastgan.clip_weights_(few, 0.01))
    assert python_calls(lambda: fastgan.clip_weights_(many, 0.01)) == expected
    assert all(weight.abs().max() <= 0.0100001 for weight in many)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.float64) * 2])
def test_clip_weights_counts_one_write_of_a_tensor_listed_twice(device, dtypes):
    weights = [torch.randn(5, device=device).to(dtype) for dtype in dtypes]
    expected = [clamped(weight, -0.1, 0.1) for weight in weights]
    versions = [weight._version for weight in weights]
    fastgan.clip_weights_([*weights, weights[0]], 0.1)
    assert [weight._version for weight in weights] == [version + 1 for version in versions]
    for weight, value in zip(weights, expected, strict=True):
        assert_same_bits(weight, value)


def test_clip_weights_clips_a_module_with_an_absent_parameter_and_a_shared_child():
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()), nn.Linear(3, 1))
    model.register_module("absent", None)
    version = shared.weight._version
    fastgan.clip_weights_(model, 0.01)
    assert shared.weight._version == version + 1
    assert all(weight.abs().max() <= 0.0100001 for weight in model.parameters())


def test_clip_weights_makes_a_later_backward_through_old_values_raise():
    critic = nn.Linear(3, 1)
    x = torch.randn(2, 3, requires_grad=True)
    score = critic(x).sum()
    fastgan.clip_weights_(critic, 1e-9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        score.backward()


@pytest.mark.parametrize(
    "clip", [-0.1, math.nan, (1.0, -1.0), (math.nan, 1.0), "0.01", None, True, (1.0,), (0, 1, 2)]
)
def test_clip_weights_refuses_bad_bounds(clip):
    with pytest.raises(ValueError, match="clip is"):
        fastgan.clip_weights_(nn.Linear(2, 2), clip)


def test_clip_weights_refuses_what_is_no_float_by_name_and_clips_nothing():
    model = nn.Linear(2, 2)
    model.codes = nn.Parameter(torch.arange(3), requires_grad=False)
    before = model.weight.clone()
    with pytest.raises(TypeError, match=r"'codes' has dtype torch\.int64"):
        fastgan.clip_weights_(model, 1e-9)
    assert torch.equal(model.weight, before)
    with pytest.raises(TypeError, match="parameter number 1 is str"):
        fastgan.clip_weights_([torch.zeros(2), "weight"], 0.01)
    with pytest.raises(TypeError, match="int"):
        fastgan.clip_weights_(3, 0.01)
    with pytest.raises(TypeError, match="no values yet"):
        fastgan.clip_weights_(nn.LazyLinear(3), 0.01)


def test_clip_weights_needs_a_module_to_know_norm_layers():
    with pytest.raises(ValueError, match="include_norm=False needs a module"):
        fastgan.clip_weights_(list(nn.Linear(2, 2).parameters()), 0.01, include_norm=False)
