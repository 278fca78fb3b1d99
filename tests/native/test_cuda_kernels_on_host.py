"""The CUDA kernels of csrc/cuda, run on the host: no GPU is needed, and none is used.

Every case runs in two builds, under AddressSanitizer and UndefinedBehaviorSanitizer and with every
access traced, and in three orders of blocks and threads (docs/host-harness.md).
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from host_harness import CSRC, HERE, SCHEDULES, Case, SparseTensor, orders_of

from fastgan.ops.define import DEFINED

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIALS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, -0.5, 1e-40, -6e-8, 65504.0]
BOUNDS = [
    (-0.01, 0.01),
    (0.0, 0.5),
    (-0.5, -0.0),
    (0.25, 0.25),
    (-math.inf, 0.1),
    (-math.inf, math.inf),
    (math.inf, math.inf),
]


def random_values(count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    special = torch.tensor(SPECIALS, dtype=torch.float64)
    choice = torch.randint(0, len(SPECIALS), (count,), generator=generator)
    takes_special = torch.rand(count, generator=generator) < 0.2
    return torch.where(takes_special, special[choice], values).to(dtype)


def as_bits(tensor):
    return tensor.contiguous().view(INTEGER_OF_SIZE[tensor.element_size()])


def held(bound, dtype):
    """The bound as the dtype holds it: what the op passes to its kernels."""
    return torch.tensor(bound, dtype=torch.float64).to(dtype).item()


# --- clip_tensors.cu ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(harness):
    return harness.kernels("clip_tensors")


def clip_case(values, bounds, misalignment=0):
    lower, upper = (held(bound, values.dtype) for bound in bounds)
    return Case(
        "clip_tensors",
        {"params": [values]},
        numbers={"lower": lower, "upper": upper},
        misalignment={"params": misalignment},
        label=f"clip of {values.dtype} {tuple(values.shape)}, strides {values.stride()}, to "
        f"[{lower}, {upper}], {misalignment} bytes after a boundary",
    )


def assert_clipped(case, result):
    """Against float64's comparison; a value within the bounds keeps its very bits, NaN included."""
    (values,) = case.tensors["params"]
    wide = values.double()
    lower, upper = case.numbers["lower"], case.numbers["upper"]
    expected = values.clone()
    expected[wide < lower] = lower
    expected[wide > upper] = upper
    assert result.error == ""
    (actual,) = result.tensors["params"]
    wrong = as_bits(actual) != as_bits(expected)
    assert not wrong.any(), f"{case.label}: {actual[wrong][:4]}, not {expected[wrong][:4]}"


def assert_rest_untouched(case, result):
    """What lies between the elements of a strided tensor has the bits it had."""
    (values,) = case.tensors["params"]
    (after,) = result.extents["params"]
    before = values.as_strided(after.shape, (1,), values.storage_offset())
    is_element = torch.zeros(after.shape, dtype=torch.bool)
    is_element.as_strided(values.shape, values.stride()).fill_(True)
    assert torch.equal(as_bits(after)[~is_element], as_bits(before)[~is_element]), case.label


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_at_every_size_and_alignment(clip, dtype):
    vector = 16 // dtype.itemsize
    block = 256 * 4 * vector
    sizes = [*range(2 * vector + 2), *(n + d for n in (256, block) for d in (-1, 0, 1)), 5000]
    cases = []
    for size in sizes:
        offsets = range(vector) if size < 300 else (0, 1, vector - 1)
        for offset in offsets:
            seed = 31 * size + offset
            bounds = BOUNDS[seed % len(BOUNDS)]
            values = random_values(size, dtype, seed)
            cases.append(clip_case(values, bounds, offset * dtype.itemsize))
    for case, result in zip(cases, clip.check(cases, schedules=orders_of(dtype)), strict=True):
        assert_clipped(case, result)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_for_fuzzed_sizes_alignments_and_bounds(clip, dtype):
    generator = torch.Generator().manual_seed(dtype.itemsize)

    def below(limit):
        return int(torch.randint(0, limit, (), generator=generator))

    cases = []
    for _ in range(40):
        bounds = sorted((torch.randn(2, generator=generator) * 2).tolist())
        values = random_values(below(10 ** (1 + below(4))), dtype, below(10**9))
        cases.append(clip_case(values, bounds, below(16 // dtype.itemsize) * dtype.itemsize))
    for case, result in zip(cases, clip.check(cases, schedules=orders_of(dtype)), strict=True):
        assert_clipped(case, result)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_for_strided_layouts_and_leaves_the_gaps_alone(clip, dtype):
    def base(*shape, seed):
        return random_values(math.prod(shape), dtype, seed).view(shape)

    views = [
        base(40, 30, seed=1)[:, ::2],
        base(40, 30, seed=2).t()[3:, 1:],
        base(7, 5, 6, 4, seed=3)[::2, 1:4, :, ::3],
        base(2, 3, 8, 8, seed=4).contiguous(memory_format=torch.channels_last),  # dense
        base(2, 3, 8, 8, seed=5).contiguous(memory_format=torch.channels_last)[:, :2],
        base(600, seed=6)[5::7],
        base(3, 1, 700, seed=7).transpose(0, 2)[::3],
        base(1, seed=8)[0],
        base(4, 0, seed=9)[::2],
    ]
    cases = [clip_case(view, (-0.25, 0.5)) for view in views]
    for case, result in zip(cases, clip.check(cases, schedules=orders_of(dtype)), strict=True):
        assert_clipped(case, result)
        assert_rest_untouched(case, result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clip_is_right_for_every_16_bit_pattern(clip, dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    case = clip_case(patterns, (-0.01, 7.0))
    (result,) = clip.check([case], schedules=SCHEDULES[-1:])
    assert_clipped(case, result)


def test_clip_counts_vectors_beyond_two_to_the_31(clip):
    """The first and the last block alone; of the 32 GiB only what they touch takes memory."""
    count = 2**34 + 4096 + 37
    fives = torch.full((37 + 8,), 5.0, dtype=torch.bfloat16)
    sparse = SparseTensor(torch.bfloat16, count, {0: fives, count - len(fives): fives})
    case = Case(
        "clip_tensors",
        {"params": [sparse]},
        numbers={"lower": -1.0, "upper": 1.0},
        only_blocks=(0, -1),
        label=f"clip of {count} elements",
    )
    (result,) = clip.check([case], builds=["sanitized"])
    first, last = result.tensors["params"][0].values()
    assert first.eq(1).all()
    assert last.eq(1).all()


@pytest.mark.parametrize(("rule", "states"), [("rmsprop", 1), ("adam", 2)])
def test_steps_count_elements_beyond_two_to_the_31(optimisers, rule, states):
    count = 2**31 + 4096 + 37
    ones = torch.ones(20, dtype=torch.float32)
    names = ["params", "grads", *(f"state{s}" for s in range(states))]
    sparse = SparseTensor(torch.float32, count, {0: ones, count - len(ones): ones})
    case = step_case(rule, [(20,)], torch.float32, 0)
    case = replace(case, tensors={"steps": [torch.tensor([3.0])]} | {n: [sparse] for n in names})
    (result,) = optimisers.check(
        [replace(case, only_blocks=(0, -1))], builds=["sanitized"], schedules=SCHEDULES[-1:]
    )
    assert result.tensors["steps"][0].item() == 4
    windows = result.tensors["params"][0]
    small = {name: [torch.ones(20)] for name in names} | {"steps": [torch.tensor([3.0])]}
    (expected,) = optimisers.check([replace(case, tensors=small)], builds=["sanitized"])
    for window in windows.values():
        assert torch.equal(window, expected.tensors["params"][0])


# --- optimizers.cu, clip_tensors.cu ---------------------------------------------------------------

#: How far a result may be from float64's, relative to it and in units of 1: a few roundings.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}
SETTINGS = {"lr": 0.05, "weight_decay": 0.0, "lower": -0.4, "upper": 0.6}


def rmsprop_in_float64(case, param, grad, states, step):
    n = case.numbers
    square_avg = n["alpha"] * states[0] + (1 - n["alpha"]) * grad**2
    after = [square_avg]
    v = square_avg
    if n["centered"]:
        grad_avg = states[-1] + (1 - n["alpha"]) * (grad - states[-1])
        v = square_avg - grad_avg**2
    update = grad / (v.sqrt() + n["eps"])
    if n["momentum"] > 0:
        update = n["momentum"] * states[1] + update
        after.append(update)
    if n["centered"]:
        after.append(grad_avg)
    return param - n["lr"] * update, after


def adam_in_float64(case, param, grad, states, step):
    n = case.numbers
    exp_avg = n["beta1"] * states[0] + (1 - n["beta1"]) * grad
    exp_avg_sq = n["beta2"] * states[1] + (1 - n["beta2"]) * grad**2
    after = [exp_avg, exp_avg_sq]
    if n["amsgrad"]:
        after.append(torch.maximum(states[2], exp_avg_sq))
    corrected = exp_avg / (1 - n["beta1"] ** step)
    denominator = (after[-1] / (1 - n["beta2"] ** step)).sqrt() + n["eps"]
    return param - n["lr"] * corrected / denominator, after


RULES = {
    "rmsprop": (rmsprop_in_float64, {"alpha": 0.9, "eps": 1e-2, "momentum": 0.0, "centered": 0}, 1),
    "adam": (adam_in_float64, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-2, "amsgrad": 0}, 2),
}
RULES["adamw"] = RULES["adam"]
for rule, changes, more in (
    ("rmsprop, momentum", {"momentum": 0.5}, 1),
    ("rmsprop, centered", {"centered": 1}, 1),
    ("rmsprop, momentum, centered", {"momentum": 0.5, "centered": 1}, 2),
    ("adam, amsgrad", {"amsgrad": 1}, 1),
):
    formula, numbers, states = RULES[rule.split(",")[0]]
    RULES[rule] = (formula, {**numbers, **changes}, states + more)


@pytest.fixture(scope="module")
def optimisers(harness):
    return harness.kernels("optimizers")


def step_case(
    rule, shapes, dtype, seed, *, misalignment=None, extra=None, relayout=None, **numbers
):
    """Tensors of these shapes. `relayout(place, tensor)` gives a tensor another memory layout."""
    _, rule_numbers, states = RULES[rule]
    generator = torch.Generator().manual_seed(seed)

    def some(place, low, high):
        def uniform(shape):
            wide = torch.rand(shape, generator=generator, dtype=torch.float64)
            tensor = (low + (high - low) * wide).to(dtype)
            return relayout(place, tensor) if relayout else tensor

        return [uniform(shape) for shape in shapes]

    # Averages of squares well above the squares of averages: no root is of a small difference.
    ranges = {"params": (-1, 1), "grads": (-2, 2), "state0": (0.5, 1), "state1": (0.5, 1)}
    if rule.startswith("rmsprop"):
        ranges |= {"state1": (-0.2, 0.2), "state2": (-0.2, 0.2)}
    else:
        ranges |= {"state0": (-0.5, 0.5), "state2": (0.5, 1)}
    names = ["params", "grads", *(f"state{s}" for s in range(states))]
    tensors = {name: some(name, *ranges[name]) for name in names}
    tensors["steps"] = [torch.tensor([float(i % 5)]) for i in range(len(shapes))]
    entry = rule.split(",")[0]
    numbers = {**rule_numbers, **SETTINGS, **numbers}
    numbers |= {n: held(SETTINGS[n], dtype) for n in ("lower", "upper")}
    names = [each.name for each in DEFINED[f"{entry}_step_"].overload._schema.arguments]
    own = names[names.index("lr_tensor") + 1 : names.index("maximize")]
    return Case(
        entry,
        {**tensors, **(extra or {})},
        numbers=numbers | {f"setting{i}": numbers[name] for i, name in enumerate(own)},
        integers={"maximize": 0},
        misalignment=misalignment or {},
        label=f"{rule} of {dtype}, {len(shapes)} tensors, seed {seed}",
    )


def assert_close(actual, expected, what):
    tolerance = TOLERANCES[actual.dtype]
    torch.testing.assert_close(
        actual.double(), expected, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}"
    )


def assert_stepped(rule, case, result):
    assert result.error == ""
    given, got = case.tensors, result.tensors
    states = [name for name in given if name.startswith("state")]
    scale = given["grad_scale"].double() if "grad_scale" in given else None
    for i, param in enumerate(given["params"]):
        what = f"{case.label}, tensor {i} of shape {tuple(param.shape)}"
        step = given["steps"][i].item() + 1
        assert got["steps"][i].item() == step, what
        grad = given["grads"][i].double()
        if scale is None:
            assert torch.equal(as_bits(got["grads"][i]), as_bits(given["grads"][i])), what
        else:
            grad = grad / scale
            assert_close(got["grads"][i], grad, what)
        grad = -grad if case.integers["maximize"] else grad
        weight, decay = param.double(), case.numbers["weight_decay"]
        if case.entry == "adamw":
            weight = weight - case.numbers["lr"] * decay * weight
        else:
            grad = grad + decay * weight
        before = [given[name][i].double() for name in states]
        updated, after = RULES[rule][0](case, weight, grad, before, step)
        clipped = updated.clamp(case.numbers["lower"], case.numbers["upper"])
        assert_close(got["params"][i], clipped, what)
        for name, expected in zip(states, after, strict=True):
            assert_close(got[name][i], expected, f"{what}, {name}")
        if "shadows" in given:
            shadow = got["shadows"][i]
            rounded = got["params"][i].float().to(shadow.dtype)
            assert torch.equal(as_bits(shadow), as_bits(rounded)), what


def chunk_shapes(dtype):
    """Around a vector, a round and a chunk of a block; empty and of many dimensions too."""
    vector = 16 // dtype.itemsize
    round_of_block = 256 * vector * (1 if dtype.itemsize == 2 else 2)
    return [
        *((n,) for n in (0, 1, vector - 1, vector, vector + 1, 255, 257)),
        (round_of_block - 1,),
        (4 * round_of_block,),
        (4 * round_of_block + 1,),
        (3, 5, 7),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_step_is_right_at_every_size_with_shadows_or_without(optimisers, rule, dtype):
    shapes = chunk_shapes(dtype)
    shadows = {"shadows": [torch.zeros(s, dtype=torch.bfloat16) for s in shapes]}
    cases = [
        step_case(rule, shapes, dtype, 1, weight_decay=0.1),
        step_case(rule, shapes, dtype, 2, extra=shadows),
    ]
    for case, result in zip(
        cases, optimisers.check(cases, schedules=orders_of(dtype)), strict=True
    ):
        assert_stepped(rule, case, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["rmsprop, momentum, centered", "adam, amsgrad"])
def test_step_is_right_at_every_alignment_and_layout(optimisers, rule, dtype):
    shapes = [(5,), (200,), (3, 40)]
    generator = torch.Generator().manual_seed(3)
    cases = []
    for seed in range(6):
        names = ("params", "grads", "state0", "state1", "state2")
        steps = torch.randint(0, 16 // dtype.itemsize, (len(names),), generator=generator)
        if seed < len(names):  # one tensor alone off its boundary
            steps = torch.where(torch.arange(len(names)) == seed, 1, 0)
        misalignment = {
            name: int(step) * dtype.itemsize for name, step in zip(names, steps, strict=True)
        }
        cases.append(step_case(rule, shapes, dtype, seed, misalignment=misalignment))

    def with_gaps(place, tensor):
        wide = tensor.repeat_interleave(3, -1)
        return wide[..., ::3]

    def gradients_transposed(place, tensor):
        if place != "grads" or tensor.dim() < 2:
            return tensor
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    for relayout in (with_gaps, gradients_transposed):
        cases.append(step_case(rule, [(7, 6), (2, 3, 300)], dtype, 9, relayout=relayout))
    for case, result in zip(
        cases, optimisers.check(cases, schedules=orders_of(dtype)), strict=True
    ):
        assert_stepped(rule, case, result)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["rmsprop, momentum", "adam"])
def test_step_is_right_for_random_lists_and_settings(optimisers, rule, dtype):
    """Sizes, direction, the shadows' dtype and alignment, and the count's dtype drawn at random."""
    generator = torch.Generator().manual_seed(11 + DTYPES.index(dtype))

    def drawn(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    cases = []
    for maximize in (0, 1):
        for step_dtype in (torch.float32, torch.float64):
            shapes = [(drawn(0, 3000),) for _ in range(drawn(1, 5))]
            shadow = (torch.bfloat16, torch.float16)[drawn(0, 2)]
            case = step_case(
                rule,
                shapes,
                dtype,
                drawn(0, 2**31),
                misalignment={"shadows": 2 * drawn(0, 8)},
                extra={
                    "shadows": [torch.zeros(shape, dtype=shadow) for shape in shapes],
                    "steps": [torch.tensor([drawn(0, 9)], dtype=step_dtype) for _ in shapes],
                },
                weight_decay=0.1,
            )
            cases.append(replace(case, integers={**case.integers, "maximize": maximize}))
    for case, result in zip(
        cases, optimisers.check(cases, schedules=orders_of(dtype)), strict=True
    ):
        assert_stepped(rule, case, result)


@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
@pytest.mark.parametrize("count", [40, 41, 381])  # a small table, a large one, one of each
def test_long_lists_take_as_many_launches_as_they_need(optimisers, rule, count):
    case = step_case(rule, [(i % 3 + 1,) for i in range(count)], torch.float32, count)
    # 32 KiB of table go to every thread by value here: one order is enough.
    (result,) = optimisers.check([case], schedules=SCHEDULES[-1:])
    assert_stepped(rule, case, result)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rule", ["rmsprop, momentum", "adam"])
def test_step_unscales_and_skips_as_grad_scaler_expects(optimisers, rule, dtype, found_inf):
    extra = {
        "grad_scale": torch.tensor([4.0]),
        "found_inf": torch.tensor([found_inf]),
        "lr_tensor": torch.tensor([SETTINGS["lr"]], dtype=torch.float64),
        "shadows": [torch.zeros(300, dtype=torch.float16), torch.zeros(3, dtype=torch.float16)],
    }
    case = step_case(rule, [(300,), (3,)], dtype, 5, extra=extra)
    (result,) = optimisers.check([case], schedules=orders_of(dtype))
    if found_inf == 0:
        assert_stepped(rule, case, result)
        return
    for name, given in case.tensors.items():
        tensors = given if isinstance(given, list) else [given]
        for before, after in zip(tensors, result.extents[name], strict=True):
            assert torch.equal(before.reshape(-1), after), name


def test_bias_corrections_are_exact_after_many_steps(optimisers):
    """A power by products would lose a rounding a step: here 1e-13."""
    tensors = {name: [torch.zeros(1, dtype=torch.float64)] for name in ("params", "grads")}
    tensors |= {f"state{i}": [torch.ones(1, dtype=torch.float64)] for i in range(2)}
    numbers = {"beta1": 0.9999, "beta2": 0.99999}
    for step in (29_999, 100_002):
        case = step_case("adam", [(1,)], torch.float64, 0, extra=tensors, **numbers)
        count = [torch.tensor([float(step)], dtype=torch.float64)]
        case = replace(case, tensors={**case.tensors, "steps": count})
        (result,) = optimisers.check([case])
        one = torch.ones(1, dtype=torch.float64)
        (expected, _) = adam_in_float64(case, 0 * one, 0 * one, [one, one], step + 1)
        torch.testing.assert_close(result.tensors["params"][0], expected, rtol=2e-15, atol=0)


@pytest.mark.parametrize("rule", ["rmsprop", "adam"])
def test_step_replays_from_a_graph(optimisers, rule):
    """What was launched holds all it needs, and counts its steps itself."""
    case = step_case(rule, [(70,), (3, 3)], torch.float64, 6)
    (once,) = optimisers.check([case])
    again = replace(case, tensors=once.tensors)
    (twice,) = optimisers.check([again])
    (replayed,) = optimisers.check([replace(case, replays=2)])
    for name in case.tensors:
        for expected, actual in zip(twice.extents[name], replayed.extents[name], strict=True):
            assert torch.equal(expected, actual), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_for_lists_of_every_size_alignment_and_layout(clip, dtype):
    itemsize = dtype.itemsize

    def case(seed, shadow, misalignment, view):
        params = [
            view(random_values(math.prod(shape), dtype, seed + i).view(shape))
            for i, shape in enumerate(chunk_shapes(dtype))
        ]
        shadows = [torch.zeros(param.shape, dtype=shadow) for param in params]
        return Case(
            "clip_tensors",
            {"params": params, "shadows": shadows} if shadow else {"params": params},
            numbers={"lower": held(-0.01, dtype), "upper": held(0.5, dtype)},
            misalignment={"params": misalignment},
            label=f"clip_tensors of {dtype}, shadow {shadow}, seed {seed}",
        )

    cases = [
        case(1, None, 0, lambda t: t),
        case(2, torch.bfloat16, 0, lambda t: t),
        case(3, torch.float16, itemsize, lambda t: t),
        case(4, None, 0, lambda t: t.repeat_interleave(2, -1)[..., ::2]),
    ]
    for one, result in zip(cases, clip.check(cases, schedules=orders_of(dtype)), strict=True):
        lists = zip(one.tensors["params"], result.tensors["params"], strict=True)
        for i, (before, after) in enumerate(lists):
            unclipped = replace(one, tensors={"params": [before]})
            assert_clipped(unclipped, replace(result, tensors={"params": [after]}))
            if "shadows" in one.tensors:
                shadow = result.tensors["shadows"][i]
                rounded = after.float().to(shadow.dtype)
                same = as_bits(shadow) == as_bits(rounded)
                assert (same | (shadow.isnan() & rounded.isnan())).all(), one.label


# --- All ------------------------------------------------------------------------------------------


def test_every_kernel_file_has_a_program_here():
    assert {path.stem for path in (HERE / "programs").glob("*.cpp")} == {
        path.stem for path in (CSRC / "cuda").glob("*.cu")
    }
