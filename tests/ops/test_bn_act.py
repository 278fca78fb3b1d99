"""fastgan.functional.bn_act against plain PyTorch, eager's own error being the measure of ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgan
from fastgan.activations import ACTIVATIONS
from fastgan.functional import bn_act

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def device_or_skip(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return device


def eager(input, weight, bias, running_mean, running_var, training, activation, slope, eps=1e-5):
    y = F.batch_norm(input, running_mean, running_var, weight, bias, training, 0.1, eps)
    return ACTIVATIONS[activation].forward(y, slope)


def ours(input, weight, bias, running_mean, running_var, training, activation, slope, eps=1e-5):
    return bn_act(
        input,
        bn_weight=weight,
        bn_bias=bias,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        eps=eps,
        activation=activation,
        negative_slope=slope,
    )


def composed(input, weight, bias, running_mean, running_var, training, activation, slope):
    """Of elementary functions, so that autograd differentiates it to any order."""
    dimensions = [d for d in range(input.dim()) if d != 1]
    shape = (1, -1, *(1,) * (input.dim() - 2))
    mean = input.mean(dimensions) if training else running_mean
    variance = input.var(dimensions, correction=0) if training else running_var
    xhat = (input - mean.view(shape)) / (variance + 1e-5).sqrt().view(shape)
    u = xhat if weight is None else xhat * weight.view(shape)
    u = u if bias is None else u + bias.view(shape)
    return ACTIVATIONS[activation].forward(u, slope)


class Problem:
    """Random arguments; `run` gives outputs, gradients, running statistics, second-order ones."""

    def __init__(self, shape, seed, *, affine=True, mean=0.0, constant=False):
        generator = torch.Generator().manual_seed(seed)

        def random(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64)

        channels = shape[1]
        self.input = random(*shape) + mean
        if constant:
            self.input[:, 0] = mean
        self.grad = random(*shape)
        self.affine = (random(channels) + 1.5, random(channels)) if affine else (None, None)
        self.running = (random(channels), random(channels) ** 2 + 0.5)

    def run(
        self, function, dtype, place, training, activation, slope, rounded_to=None, second=True
    ):
        """Values are rounded to `rounded_to` first, so that all precisions solve the same one."""

        def ready(tensor):
            return tensor.to(rounded_to or dtype).to(dtype)

        input = place(ready(self.input)).requires_grad_()
        # Parameters are float32 beside 16-bit data, as they are under autocast.
        parameter = torch.float32 if dtype.itemsize == 2 else dtype
        affine = [
            None if v is None else v.float().to(parameter).to(input.device).requires_grad_()
            for v in self.affine
        ]
        running = [v.float().to(parameter).to(input.device) for v in self.running]
        grad = place(ready(self.grad)).requires_grad_(second)
        output = function(input, *affine, *running, training, activation, slope)
        wanted = [t for t in (input, *affine) if t is not None]
        first = torch.autograd.grad(output, wanted, grad, create_graph=second)
        results = {"output": output}
        results |= {f"gradient {i}": g for i, g in enumerate(first)}
        results |= {"running_mean": running[0], "running_var": running[1]}
        if second:
            loss = sum((g.float() if g.dtype.itemsize == 2 else g).square().mean() for g in first)
            again = torch.autograd.grad(loss, [*wanted, grad], materialize_grads=True)
            results |= {f"second-order gradient {i}": g for i, g in enumerate(again)}
        return {name: r.detach().double().cpu() for name, r in results.items()}

    def sizes(self, dtype, training, activation, slope):
        """Of results, how large the numbers are that they come of, and lose roundings of.

        However little is left of a sum, it loses some of the root of the sum of its squared terms;
        and u = (x - mean) invstd weight + bias some of its two terms and of the mean. tanh and
        sigmoid pass u's error on to their derivatives.
        """
        input, grad = (t.to(dtype).double() for t in (self.input, self.grad))
        shape = (1, -1, *(1,) * (input.dim() - 2))
        affine = zip(self.affine, (1.0, 0.0), strict=True)
        weight, bias = (d if v is None else v.detach().view(shape) for v, d in affine)
        dimensions = [d for d in range(input.dim()) if d != 1]
        moments = input.mean(dimensions), input.var(dimensions, correction=0)
        mean, variance = (v.view(shape) for v in (moments if training else self.running))
        xhat, of_zero = ((t - mean) / (variance + 1e-5).sqrt() for t in (input, 0))
        u = (xhat * weight + bias).requires_grad_()
        (terms,) = torch.autograd.grad(ACTIVATIONS[activation].forward(u, slope), u, grad)
        size = (xhat * weight).abs() + abs(bias) + (of_zero * weight).abs()
        if activation in ("tanh", "sigmoid"):
            terms = terms * (1 + size)
        return {
            "output": size,
            "gradient 1": (terms * xhat).square().sum(dimensions).sqrt()
            + (terms * of_zero).sum(dimensions).abs(),
            "gradient 2": terms.square().sum(dimensions).sqrt(),
        }


def assert_at_most_twice_eagers_error(problem, dtype, place, *settings, second=True):
    exact = problem.run(composed, torch.float64, place, *settings, rounded_to=dtype, second=second)
    peer = problem.run(eager, dtype, place, *settings, second=second)
    mine = problem.run(ours, dtype, place, *settings, second=second)
    sizes = problem.sizes(dtype, *settings)
    assert mine.keys() == peer.keys() == exact.keys()
    for name, right in exact.items():
        if right.numel() == 0:
            continue
        # The error of rounding a correct result, or the few sums that a second-order one is of;
        # below that there is nothing to compare.
        precision = dtype if name in ("output", "gradient 0") else torch.float32
        floor = torch.finfo(precision).eps * max(right.abs().max(), sizes.get(name, right).max())
        floor = 4 * floor if name.startswith("second") else floor
        floor = max(floor, 1e-15)  # what the exact ones are off by
        theirs, error = ((r[name] - right).square().mean().sqrt() for r in (peer, mine))
        assert error <= 2 * max(theirs, floor), (name, error, theirs, floor)


@pytest.mark.processors
@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 9),
    channels=st.sampled_from([1, 2, 3, 5, 8, 16, 33, 100]),
    sizes=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from(FORMATS),
    training=st.booleans(),
    affine=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    slope=st.sampled_from([0.2, 0.0, -0.3]),
    mean=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 2**31),
)
def test_error_is_at_most_twice_eagers(
    device,
    batch,
    channels,
    sizes,
    dtype,
    memory_format,
    training,
    affine,
    activation,
    slope,
    mean,
    seed,
):
    device_or_skip(device)
    shape = (batch, channels, *sizes)
    values = batch * torch.Size(sizes).numel()
    if values < 16:  # with few, xhat hardly depends on the input, and all gradients cancel
        shape = (batch + 16, channels, *sizes)
    place = torch.Tensor.to
    problem = Problem(shape, seed, affine=affine, mean=mean)

    def placed(tensor):
        tensor = place(tensor, device)
        return tensor.contiguous(memory_format=memory_format) if tensor.dim() == 4 else tensor

    # torch's own second-order gradients in 16 bits round every step; ours only the result.
    assert_at_most_twice_eagers_error(
        problem, dtype, placed, training, activation, slope, second=dtype == torch.float32
    )


@pytest.mark.processors
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(8, 64, 16, 16), (4, 20, 40, 33)])
def test_error_of_images_is_at_most_twice_eagers(device, dtype, memory_format, shape):
    def placed(tensor):
        return tensor.to(device_or_skip(device)).contiguous(memory_format=memory_format)

    for training in (True, False):
        assert_at_most_twice_eagers_error(
            Problem(shape, 1), dtype, placed, training, "relu", 0.0, second=False
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("constant", [False, True])
def test_large_means_and_constant_channels_are_as_good_as_eagers(device, memory_format, constant):
    def placed(tensor):
        return tensor.to(device_or_skip(device)).contiguous(memory_format=memory_format)

    problem = Problem((16, 40, 24, 24), 0, mean=1e4, constant=constant)
    assert_at_most_twice_eagers_error(
        problem, torch.float32, placed, True, "leaky_relu", 0.2, second=False
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_first_second_and_third_order_are_exact(training, activation, affine):
    problem = Problem((3, 2, 2, 2), 4, affine=affine)
    leaves = [problem.input.requires_grad_()]
    leaves += [v.requires_grad_() for v in problem.affine if v is not None]

    def call(function):
        def of_leaves(input, weight=None, bias=None):
            running = [v.clone() for v in problem.running]
            return function(input, weight, bias, *running, training, activation, -0.3)

        return of_leaves

    torch.autograd.gradcheck(call(ours), leaves)
    torch.autograd.gradgradcheck(call(ours), leaves)
    third = []
    for function in (ours, composed):
        total = call(function)(*leaves).square().sum()
        for _ in range(2):
            gradients = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum(g.square().sum() for g in gradients)
        third.append(torch.autograd.grad(total, leaves))
    for actual, expected in zip(*third, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_gradient_that_depends_on_nothing_has_none():
    """With running statistics and no activation the gradient is linear in grad_output alone."""
    input = torch.randn(3, 2, 4, requires_grad=True)
    output = ours(input, None, None, torch.zeros(2), torch.ones(2), False, "none", 0.0)
    (gradient,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    second = torch.autograd.grad(gradient.sum(), input, allow_unused=True)[0]
    assert second is None or second.eq(0).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_does_as_in_torch(shape, training):
    results = []
    for function in (ours, eager):
        input = torch.zeros(shape, requires_grad=True)
        weight, bias = (torch.ones(3, requires_grad=True) for _ in range(2))
        running = torch.full((3,), 2.0), torch.full((3,), 3.0)
        output = function(input, weight, bias, *running, training, "relu", 0.0)
        gradients = torch.autograd.grad(output.sum(), (input, weight, bias), allow_unused=True)
        gradients = [torch.zeros(3) if g is None else g for g in gradients]
        results.append([output, *gradients, *running])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_expanded_gradient_gives_what_a_dense_one_gives():
    input = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    output = ours(input, None, None, None, None, True, "relu", 0.0)
    assert output.stride() == input.stride()
    expanded = torch.autograd.grad(output.sum(), input, retain_graph=True)[0]
    dense = torch.autograd.grad(output, input, torch.ones_like(output))[0]
    assert torch.equal(expanded, dense)


def test_two_runs_give_the_same_bits():
    problem = Problem((16, 33, 12, 12), 0)

    def placed(tensor):
        return tensor.contiguous(memory_format=torch.channels_last)

    runs = [
        problem.run(ours, torch.float32, placed, True, "tanh", 0.0, second=False) for _ in range(2)
    ]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_only_the_input_and_vectors_are_kept_for_backward():
    kept = []
    input = torch.randn(8, 6, 5, 5, requires_grad=True)
    weight, bias = torch.ones(6, requires_grad=True), torch.zeros(6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = ours(input, weight, bias, torch.zeros(6), torch.ones(6), True, "relu", 0.0)
    large = [t for t in kept if t.dim() > 1]
    assert [t.data_ptr() for t in large] == [input.data_ptr()]
    assert output.grad_fn is not None


def test_running_statistics_may_change_between_an_evaluation_and_its_backward():
    input, running = torch.randn(4, 3, 5), (torch.zeros(3), torch.ones(3))
    weight = torch.ones(3, requires_grad=True)
    gradients = []
    for train_between in (False, True):
        output = ours(input, weight, None, *running, False, "tanh", 0.0)
        if train_between:
            ours(input + 1, weight, None, *running, True, "tanh", 0.0)
        gradients.append(torch.autograd.grad(output.sum(), weight)[0])
    assert torch.equal(*gradients)


def test_gradients_only_where_wanted():
    input = torch.randn(4, 3, 5)
    weight = torch.ones(3, requires_grad=True)
    ours(input, weight, torch.zeros(3), None, None, True, "relu", 0.0).sum().backward()
    assert weight.grad is not None
    assert input.grad is None
    with torch.no_grad():
        assert not ours(input, weight, None, None, None, True, "relu", 0.0).requires_grad
    with torch.inference_mode():
        running = torch.zeros(3), torch.ones(3)
        ours(input, None, None, *running, True, "relu", 0.0)
        assert running[0].abs().sum() > 0


def test_bfloat16_parameters_get_bfloat16_gradients():
    input = torch.randn(4, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    running = torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)
    output = ours(input, weight, bias, *running, True, "relu", 0.0)
    output.sum().backward()
    assert {t.dtype for t in (output, input.grad, weight.grad, bias.grad, *running)} == {
        torch.bfloat16
    }


def test_autocast_leaves_the_dtype_alone_as_for_torchs_batch_norm():
    for dtype in (torch.float32, torch.bfloat16):
        input = torch.randn(4, 3, 5, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for function in (ours, eager):
                assert function(input, None, None, None, None, True, "relu", 0.0).dtype == dtype


# --- What it refuses ------------------------------------------------------------------------------


def test_bad_arguments_are_refused_by_name_before_anything_is_written():
    x, v = torch.randn(2, 3, 4), torch.ones(3)
    running = torch.zeros(3), torch.ones(3)
    for arguments, kind, message in (
        ((x, v[:2], v, *running, True, "relu", 0.0), RuntimeError, r"bn_weight has shape \(2,\)"),
        ((x, v, v[:2], *running, True, "relu", 0.0), RuntimeError, r"bn_bias has shape \(2,\)"),
        ((x, v, v, running[0], v[:2], True, "relu", 0.0), RuntimeError, "running_var has shape"),
        ((x, v.double(), v, *running, True, "relu", 0.0), TypeError, "bn_weight has dtype"),
        ((x, v.half(), v, *running, True, "relu", 0.0), TypeError, "bn_weight has dtype"),
        ((x.long(), v, v, *running, True, "relu", 0.0), TypeError, r"input has dtype torch\.int64"),
        ((x, v, v, *running, True, "swish", 0.0), ValueError, "activation is 'swish'; expected"),
        ((x[0, 0], v, v, *running, True, "relu", 0.0), ValueError, r"input has shape \(4,\)"),
        ((x[:1, :, :1], v, v, *running, True, "relu", 0.0), ValueError, "more than 1 value"),
        ((x, v, v, None, running[1], False, "relu", 0.0), RuntimeError, "running_mean is None"),
        ((x, v, v, running[0], None, False, "relu", 0.0), RuntimeError, "running_var is None"),
    ):
        with pytest.raises(kind, match=message):
            ours(*arguments)
    assert running[0].eq(0).all()
    assert running[1].eq(1).all()


def test_writing_the_input_before_backward_raises():
    input = torch.randn(4, 3, 5, requires_grad=True)
    middle = input * 1
    output = ours(middle, None, None, None, None, True, "relu", 0.0)
    middle.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_transforms_and_forward_mode_raise():
    x = torch.randn(4, 3, 5)

    def call(x):
        return ours(x, None, None, None, None, True, "relu", 0.0)

    with pytest.raises(RuntimeError, match=r"no gradient|setup_context"):
        torch.func.grad(lambda x: call(x).sum())(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"jvp|tangent"):
        call(torch.autograd.forward_ad.make_dual(x, x))
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match="tangent"):
            call(dual)


# --- The op and the compiler ----------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_statistics", [True, False])
def test_opcheck_with_gradients(device, batch_statistics):
    device_or_skip(device)
    input = torch.randn(3, 5, 4, 6, device=device, requires_grad=True)
    vectors = [torch.rand(5, device=device) for _ in range(4)]
    for vector in vectors[:2]:
        vector.requires_grad_()
    torch.library.opcheck(
        torch.ops.fastgan.bn_act.default, (input, *vectors, batch_statistics, 3, 0.2)
    )


def test_the_op_called_directly_has_the_same_gradients():
    problem = Problem((4, 3, 5), 0)
    input = problem.input.requires_grad_()
    weight, bias = (v.requires_grad_() for v in problem.affine)
    mean, invstd, _ = torch.ops.fastgan.batch_norm_statistics(
        input.detach(), None, None, None, 0.0, 1e-5
    )
    by_op = torch.ops.fastgan.bn_act(input, weight, bias, mean, invstd, True, 3, 0.0)
    by_function = ours(input, weight, bias, None, None, True, "tanh", 0.0)
    assert torch.equal(by_op, by_function)
    for a, b in zip(
        torch.autograd.grad(by_op.square().sum(), (input, weight, bias)),
        torch.autograd.grad(by_function.square().sum(), (input, weight, bias)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph_with_running_statistics(device, training):
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for memory_format in FORMATS:
        problem = Problem((4, 3, 5, 6), 0)

        def placed(tensor, memory_format=memory_format):
            return tensor.to(device_or_skip(device)).contiguous(memory_format=memory_format)

        arguments = (torch.float32, placed, training, "leaky_relu", 0.1)
        expected = problem.run(ours, *arguments, second=False)
        actual = problem.run(compiled, *arguments, second=False)
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name


def test_runs_on_fastgans_own_kernels():
    if not fastgan.build_info().native:
        pytest.skip("this install has no compiled part")
    rows = {row.op: row.path for row in fastgan.ops.op_paths() if row.device == "cpu"}
    for op in ("bn_act", "bn_act_gradient", "batch_norm_statistics"):
        assert rows[op] == "cpu"


def test_torchs_batch_norm_may_share_the_running_statistics() -> None:
    """It keeps them for its backward pass, and counts no writes to them."""
    x = torch.randn(4, 3, requires_grad=True)
    mean, var = torch.zeros(3), torch.ones(3)
    by_torch = F.batch_norm(x, mean, var, training=True)
    ours = bn_act(
        x, bn_weight=None, bn_bias=None, running_mean=mean, running_var=var, training=True
    )
    (by_torch + ours).square().sum().backward()
