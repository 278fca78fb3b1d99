"""The optimisers' ops: opcheck, refusals, torch.compile, instruction sets, CUDA."""

from __future__ import annotations

import copy

import pytest
import torch
from optim_steps import DTYPES, NUMERIC, OPTIMIZERS, copies, parameters, set_gradients

import fastgan
import fastgan.optim
from fastgan.ops import check_op, op_paths
from fastgan.ops.define import DEFINED

OPS = ["clip_tensors_", *(f"{name.lower()}_step_" for name in NUMERIC)]


def op_arguments(op, device, dtype=torch.float32, *, shadows=True, grad_scale=True):
    """Arguments of an op over a dense, a strided and an empty tensor."""
    torch.manual_seed(0)
    base = torch.randn(4, 6, device=device).to(dtype)

    def tensors(n=3):
        made = [base.clone(), base.clone().repeat(1, 2)[:, ::2], base.clone()[:0]]
        return made[:n]

    shadow = [t.to(torch.bfloat16) for t in tensors()] if shadows else []
    steps = [torch.ones((), device=device) for _ in range(3)]
    scale = torch.tensor(2.0, device=device) if grad_scale else None
    found = torch.tensor(0.0, device=device)
    states = [[t**2 + 2 for t in tensors()], tensors(), tensors()]
    if op == "clip_tensors_":
        return tensors(), shadow, -0.1, 0.2, found
    if op == "rmsprop_step_":
        return (tensors(), tensors(), *states, steps, shadow, 0.1, None, 0.9, 1e-3, 0.1, 0.5, True,
                False, -1.0, 1.0, False, scale, found)  # fmt: skip
    states = [states[1], states[0], [t.clone() for t in states[0]]]
    return (tensors(), tensors(), *states, steps, shadow, 0.1, steps[0].clone(), 0.5, 0.9, 1e-3,
            0.1, True, False, -1.0, 1.0, True, scale, found)  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extras", [False, True])
def test_opcheck(device, op, dtype, extras):
    """Whether it compiles doesn't depend on the dtype, and is asked of one, with all there is."""
    compiling = ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(
        getattr(torch.ops.fastgan, op).default,
        op_arguments(op, device, dtype, shadows=extras, grad_scale=extras),
        test_utils=[
            *("test_schema", "test_faketensor"),
            *(compiling if extras and dtype == torch.float32 else []),
        ],
    )


@pytest.mark.parametrize("op", OPS)
def test_plain_pytorch_kernel_agrees_with_the_compiled_one(op):
    for dtype in DTYPES:
        compiled = op_arguments(op, "cpu", dtype)
        plain = copy.deepcopy(compiled)
        getattr(torch.ops.fastgan, op)(*compiled)
        DEFINED[op].reference(*plain)
        for a, b in zip(compiled, plain, strict=True):
            if isinstance(a, list):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("op", OPS)
def test_lists_that_do_not_match_are_refused(device, op):
    function = getattr(torch.ops.fastgan, op)

    def refused(arguments, message):
        for call in (function, DEFINED[op].reference):
            with torch.no_grad(), pytest.raises(RuntimeError, match=message):
                call(*arguments)

    arguments = list(op_arguments(op, device, grad_scale=False, shadows=False))
    wrong = [*arguments[0][:2], arguments[0][2].double()]
    refused([wrong, *arguments[1:]], r"dtype torch\.float64")
    if op == "clip_tensors_":
        refused([arguments[0], arguments[0][:1], *arguments[2:]], "shadows has 1 tensors for 3")
        refused([arguments[0], arguments[0], *arguments[2:]], "float16 or all bfloat16")
        refused([*arguments[:2], 1.0, -1.0, None], "min must not exceed max")
        return
    short = arguments[1][:2]
    refused([arguments[0], short, *arguments[2:]], "grads")
    wrong = [arguments[1][0][:1], *arguments[1][1:]]
    refused([arguments[0], wrong, *arguments[2:]], r"grads\[0\] has shape \(1, 6\)")
    refused([*arguments[:5], arguments[5][:2], *arguments[6:]], "state_steps")


@pytest.mark.parametrize("op", OPS)
def test_gradient_is_never_lost_in_silence(device, op):
    arguments = op_arguments(op, device)
    arguments[0][0].requires_grad_()
    with pytest.raises(RuntimeError, match="requires grad"):
        getattr(torch.ops.fastgan, op)(*arguments)


@pytest.mark.parametrize("op", OPS)
def test_op_counts_its_writes(device, op):
    arguments = op_arguments(op, device, grad_scale=False)
    versions = [[t._version for t in a] if isinstance(a, list) else None for a in arguments]
    getattr(torch.ops.fastgan, op)(*arguments)
    for i, (argument, before) in enumerate(zip(arguments, versions, strict=True)):
        if before is not None:
            after = [t._version for t in argument]
            if i == 1 and op != "clip_tensors_":  # gradients, which are not unscaled here
                assert after == before
            else:
                assert all(new > old for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "aot_eager") for name in OPTIMIZERS), ("Adam", "inductor")],
)
def test_step_op_compiles_as_one_graph(device, name, backend):
    op = f"{name.lower()}_step_"

    def step(*arguments):
        with torch.no_grad():
            getattr(torch.ops.fastgan, op)(*arguments)
        return arguments[0][0] * 2

    import torch._inductor.config  # takes a second

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    eager_arguments = op_arguments(op, device)
    arguments = copy.deepcopy(eager_arguments)
    # Which vectors the compiler knows, and precompiled headers, would take half a minute.
    with torch._inductor.config.patch(
        {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    ):
        expected, actual = step(*eager_arguments), compiled(*arguments)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(arguments, eager_arguments, strict=True):
        if isinstance(a, list):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_with_a_grad_scale_compiles_as_one_graph(device, name):
    def optimizer():
        params = parameters([(5,), (2, 3)], torch.float32, device=device)
        set_gradients((params,), 1)
        optimizer = getattr(fastgan.optim, name)(params, lr=0.1, clip=0.5)
        optimizer.grad_scale = torch.tensor(4.0, device=device)
        optimizer.found_inf = torch.tensor(0.0, device=device)
        return params, optimizer

    (eager_params, eager), (params, traced) = optimizer(), optimizer()
    eager.step()
    torch.compile(traced.step, fullgraph=True, backend="eager")()
    for expected, actual in zip(eager_params, params, strict=True):
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_compiles_as_one_graph(device, name):
    params = parameters([(17,), (3, 4)], torch.float32, device)
    eager_params = copies(params)
    set_gradients((params, eager_params), 0)
    compiled = getattr(fastgan.optim, name)(params, lr=0.1, clip=0.5)
    eager = getattr(fastgan.optim, name)(eager_params, lr=0.1, clip=0.5)
    torch._dynamo.reset()
    step = torch.compile(lambda: compiled.step(), fullgraph=True, backend="aot_eager")
    for seed in range(3):
        set_gradients((params, eager_params), seed)
        step()
        eager.step()
    for p, q in zip(params, eager_params, strict=True):
        torch.testing.assert_close(p, q)
        assert compiled.state[p]["step"].item() == 3


@pytest.mark.parametrize("op", OPS)
def test_paths_are_reported_and_checks_pass(device, op):
    row = {(row.op, row.device): row for row in op_paths()}[op, device.type]
    info = fastgan.build_info()
    assert row.path == (
        device.type if info.native and (device.type == "cpu" or info.cuda) else "aten"
    )
    check_op(op, device)


@pytest.mark.processors
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_is_clipped_as_by_torch(dtype):
    values = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    clipped = values.clone()
    torch.ops.fastgan.clip_tensors_([clipped], [], -0.3, 7.0, None)
    assert torch.equal(clipped.nan_to_num(9), values.clamp(-0.3, 7.0).nan_to_num(9))


# --- CUDA alone -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_runs_on_the_current_stream_without_waiting(cuda, name):
    stream = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device=cuda)
    weight = torch.zeros(1 << 20, device=cuda, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    optimizer = getattr(fastgan.optim, name)([weight], lr=0.1, clip=1.0)
    optimizer.step()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(30):
            slow = slow @ slow
        with torch.no_grad():
            weight.fill_(5.0)
        optimizer.step()
        assert not stream.query(), "the step waited for the device"
    stream.synchronize()
    assert weight.unique().tolist() == [1.0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_captured_in_a_cuda_graph_and_replays(cuda, name):
    params = parameters([(1000,), (3, 5)], torch.float32, cuda)
    plain = copies(params)
    rate = torch.tensor(0.1, device=cuda)
    optimizer = getattr(fastgan.optim, name)(params, lr=rate, clip=0.5, shadow_dtype=torch.bfloat16)
    eager = getattr(fastgan.optim, name)(plain, lr=0.1, clip=0.5)
    set_gradients((params, plain), 0)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(warm_up)
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(1, 4):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(params, plain, strict=True):
            p.grad.copy_(torch.randn(p.shape, generator=generator))
            q.grad.copy_(p.grad)
        rate.fill_(0.1 / step)
        eager.param_groups[0]["lr"] = rate.item()
        graph.replay()
        eager.step()
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)
        assert optimizer.state[p]["step"].item() == 4
        assert torch.equal(optimizer.shadow(p), p.detach().bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_state_on_the_cpu_moves_to_the_weights(cuda, name):
    params = parameters([(10,)], torch.float32, cuda)
    theirs = getattr(torch.optim, name)(params)
    set_gradients((params,), 0)
    theirs.step()
    assert theirs.state[params[0]]["step"].device.type == "cpu"
    ours = getattr(fastgan.optim, name)(params)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state[params[0]]["step"].device.type == "cuda"
    ours.step()
    assert ours.state[params[0]]["step"].item() == 2


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements(cuda):
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    weight = torch.zeros(2**31 + 37, dtype=torch.bfloat16, device=cuda)
    weight.grad = torch.ones_like(weight)
    fastgan.optim.RMSprop([weight], lr=1.0, clip=0.5).step()
    assert weight[:100].eq(-0.5).all()
    assert weight[-100:].eq(-0.5).all()
