"""csrc/cuda/bias_act.cu and upfirdn2d.cu, run on the host as test_cuda_kernels_on_host.py's are.

The ops' results on the CPU are right by tests/ops; here the kernels give the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from host_harness import SCHEDULES, Case, HostHarness
from torch import Tensor

from fastgan.ops.bias_act import ACTIVATIONS
from fastgan.ops.define import DEFINED

UNITS = 32


def assert_near(found: Any, right: Tensor, label: str) -> None:
    if not right.is_floating_point():
        assert torch.equal(found, right), label
        return
    bound = UNITS * torch.finfo(found.dtype).eps * max(1.0, float(right.abs().max()))
    assert (found.double() - right.double()).abs().max() <= bound, label


def checked(program: Any, cases: list[tuple[Case, dict[str, Tensor]]]) -> None:
    schedules = SCHEDULES[-1:]
    results = program.check([case for case, _ in cases], schedules=schedules)
    for (case, right), result in zip(cases, results, strict=True):
        assert result.error == "", case.label
        for name, expected in right.items():
            assert_near(result.tensors[name], expected, f"{case.label}: {name}")


def sizes(x: Tensor, dim: int, channels_last: bool) -> dict[str, int]:
    inner = 1 if channels_last or x.dim() == 1 else x[(0,) * (dim + 1)].numel()
    return {"channels": x.shape[dim], "inner": inner}


def test_bias_act_and_its_gradient_are_the_cpus(harness: HostHarness) -> None:
    cases = []
    for name in ("bias_act_bits", "bias_act"):
        for x, b, dim, act, alpha, gain, *clamp in DEFINED[name].examples():
            last = not x.is_contiguous()
            y, *bits = outputs = torch.utils._pytree.tree_leaves(
                DEFINED[name].overload(x, b, dim, act, alpha, gain, *clamp)
            )
            tensors = {"x": x, "y": torch.empty_like(y)}
            tensors |= {} if b is None else {"b": b}
            tensors |= {"bits": torch.zeros_like(bits[0])} if bits else {}
            numbers = {"alpha": alpha, "gain": gain, "clamp": float("inf")}
            if clamp and clamp[0] is not None:
                numbers["clamp"] = clamp[0]
            case = Case(
                *("bias_act", tensors, numbers, {"act": act, **sizes(x, dim, last)}),
                uninitialised=frozenset(set(tensors) & {"y", "bits"}),
                label=f"{name} {act} of {x.dtype}",
            )
            cases.append((case, dict(zip(("y", "bits"), outputs, strict=False))))
    for arguments in DEFINED["bias_act_gradient"].examples():
        grad, kept, b, dim, act, alpha, gain, clamp, keeps, last, _ = arguments
        right, _ = DEFINED["bias_act_gradient"].overload(*arguments)
        tensors = {"grad": grad, "grad_x": torch.empty_like(right)}
        tensors |= {} if kept is None else {"kept": kept}
        tensors |= {} if b is None else {"b": b}
        numbers = {"alpha": alpha, "gain": gain, "clamp": float("inf") if clamp is None else clamp}
        integers = {"act": act, "keeps": keeps, **sizes(grad, dim, last)}
        case = Case(
            *("bias_act_gradient", tensors, numbers, integers),
            uninitialised=frozenset({"grad_x"}),
            label=f"gradient of {act} of {grad.dtype}",
        )
        cases.append((case, {"grad_x": right}))
    assert {case.integers["act"] for case, _ in cases} == {row.code for row in ACTIVATIONS.values()}
    checked(harness.kernels("bias_act"), cases)


def of_filter(
    name: str, out: Tensor | tuple[int, int], up: Any, down: Any, pads: Any
) -> dict[str, int]:
    rows, places = out.shape[2:] if isinstance(out, Tensor) else out
    values = {"up_x": up[0], "up_y": up[1], "down_x": down[0], "down_y": down[1]}
    values |= {"pad_x": pads[0], "pad_y": pads[1], "rows": rows, "places": places}
    return {f"{name}_{key}": value for key, value in values.items()}


def test_upfirdn2d_and_filtered_lrelu_are_the_cpus(harness: HostHarness) -> None:
    cases = []
    for arguments in DEFINED["upfirdn2d"].examples():
        x, f, up, down, padding, flip, gain = arguments
        right = DEFINED["upfirdn2d"].overload(*arguments)
        last = not right.is_contiguous()
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        tensors = {"x": x, "y": torch.empty_like(right)} | (
            {} if f is None else {"f": f.contiguous()}
        )
        integers = {"flip": int(flip), "channels_last": int(last)}
        integers |= of_filter("f", right, up, down, padding[::2])
        case = Case(
            *("upfirdn2d", tensors, {"f_gain": gain}, integers),
            uninitialised=frozenset({"y"}),
            label=f"upfirdn2d of {x.dtype} {tuple(x.shape)}",
        )
        cases.append((case, {"y": right}))
    for name in ("filtered_lrelu_signs", "filtered_lrelu_masked"):
        for arguments in DEFINED[name].examples():
            masked = name == "filtered_lrelu_masked"
            if masked:
                x, bits, fu, fd, up, down, padding, inner, gain, slope, clamped, flip = arguments
                b, right = None, (DEFINED[name].overload(*arguments),)
                clamp, pads = (0.0 if clamped else float("inf")), padding
            else:
                x, fu, fd, b, up, down, padding, gain, slope, clamp, flip = arguments
                right = DEFINED[name].overload(*arguments)
                bits, clamp = torch.zeros_like(right[1]), float("inf") if clamp is None else clamp
                pads = [padding[0], padding[2], 0, 0]
                taps = 1 if fu is None else fu.shape[0]
                inner = [right[1].shape[2]]
                inner += [x.shape[3] * up + padding[0] + padding[1] + 1]
                inner[1] -= 1 if fu is None else fu.shape[-1]
                assert inner[0] == x.shape[2] * up + padding[2] + padding[3] + 1 - taps
            last = not right[0].is_contiguous()
            format = torch.channels_last if last else torch.contiguous_format
            tensors = {
                "x": x.contiguous(memory_format=format),
                "bits": bits.contiguous(memory_format=format),
                "y": torch.empty_like(right[0]),
            }
            tensors |= {
                key: each for key, each in (("fu", fu), ("fd", fd), ("b", b)) if each is not None
            }
            integers = {"flip": int(flip), "channels_last": int(last), "signs": 1 + masked}
            integers |= of_filter("fu", tuple(inner[:2]), (up, up), (1, 1), pads[:2])
            integers |= of_filter("fd", right[0], (1, 1), (down, down), pads[2:])
            numbers = {"fu_gain": 1.0 if masked else up**2, "fd_gain": 1.0}
            numbers |= {"gain": gain, "slope": slope, "clamp": clamp}
            case = Case(
                *("filtered_lrelu", tensors, numbers, integers),
                uninitialised=frozenset({"y"} if masked else {"y", "bits"}),
                label=f"{name} of {tuple(x.shape)}",
            )
            cases.append((case, dict(zip(("y", "bits"), right, strict=False))))
    checked(harness.kernels("upfirdn2d"), cases)
