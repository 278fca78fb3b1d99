"""The ratios this library is to reach, and whether a result reaches them.

Each goal names cases one by one, so that a case nobody measured shows as "not measured" instead of
not at all. Against several peers the hardest counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastgan.bench.cases import Case
from fastgan.bench.schema import METRICS, Result, Row, merged
from fastgan.bench.suites.layers import critic_layers, generator_layers

__all__ = ["GOALS", "Goal", "Verdict", "judge", "urgency"]

#: Quartiles of a ratio further apart than so many times say nothing of it.
_WIDEST_SPREAD = 2.0


@dataclass(frozen=True)
class Goal:
    """A bound on one number of one case.

    Attributes:
        device: "cpu" or "cuda".
        op: as in a row, and so the next four.
        shape: see ``op``.
        dtype: see ``op``.
        batch: see ``op``.
        metric: see ``op``.
        bound: what it is to reach.
        peers: how the names of the peers begin that count; empty for all.
        mode: "launched" or "graph".
    """

    device: str
    op: str
    shape: str
    dtype: str
    batch: int
    metric: str
    bound: float
    peers: str = ""
    mode: str = "launched"

    @property
    def at_least(self) -> bool:
        """Whether the number is to be at least the bound, or at most."""
        return METRICS[self.metric].better == "higher"


@dataclass(frozen=True)
class Verdict:
    """What became of a goal.

    Attributes:
        goal: the goal.
        row: the number, against the hardest peer; None if nobody measured it.
        result: where the number is from.
    """

    goal: Goal
    row: Row | None
    result: Result | None

    @property
    def words(self) -> str:
        """ "pass", "falls short by 12%", "within the spread" of the bound, "not measured".

        "too noisy" where one quartile is more than twice the other.
        """
        if self.row is None:
            return "not measured"
        value, bound = self.row.value, self.goal.bound
        if self.row.spread is not None and self.row.spread[1] > _WIDEST_SPREAD * self.row.spread[0]:
            return "too noisy"
        if value >= bound if self.goal.at_least else value <= bound:
            return "pass"
        if self.row.spread is not None:
            low, high = self.row.spread
            if high >= bound if self.goal.at_least else low <= bound:
                return "within the spread"
        return f"falls short by {100 * abs(value - bound) / bound:.0f}%"


def _critic(op: str, dtypes: Sequence[str], batches: Sequence[int], bound: float) -> list[Goal]:
    return [
        Goal("cpu", op, "DCGAN-64 critic", dtype, batch, "times_faster", bound)
        for dtype in dtypes
        for batch in batches
    ]


_CRITIC, _MANY = "DCGAN-64 critic", "64 million weights in 200 tensors"
_BOTH = ("float32", "bfloat16")
_GENERATOR = "generator, forward and backward"
_BN_ACT = "bn_act, forward and backward"
_DISCRIMINATOR = "discriminator, forward and backward"
_MAPS = ("512x4x4", "256x8x8", "128x16x16", "64x32x32")
_RGB = "64x64, {} critic updates"
_STYLE = "64x64x64, {}"

_CPU: list[Goal] = [
    *(
        Goal("cpu", "RMSprop and clip", shape, "float32", 0, "times_faster", 2.5)
        for shape in (_CRITIC, _MANY)
    ),
    *(
        Goal("cpu", "Adam and clip", shape, "float32", 0, "times_faster", 1.0, "fused")
        for shape in (_CRITIC, _MANY)
    ),
    *(
        Goal("cpu", "clip alone", shape, "float32", 0, "times_faster", 1.0)
        for shape in (_CRITIC, _MANY)
    ),
    *(Goal("cpu", _BN_ACT, shape, "float32", 64, "times_faster", 1.5, "eager") for shape in _MAPS),
    *(
        Goal("cpu", op, "DCGAN-64", dtype, 64, "times_faster", 1.0)
        for op in (_GENERATOR, _DISCRIMINATOR)
        for dtype in _BOTH
    ),
    Goal("cpu", _GENERATOR, "DCGAN-64", "float32", 64, "peak_ratio", 0.75, "eager"),
    *_critic("gradient penalty", _BOTH, (16, 32, 64), 1.8),
    *_critic("critic loss", _BOTH, (16, 32, 64), 1.45),
    *(
        Goal("cpu", "critic loss", f"{_CRITIC}, layer norm", dtype, batch, "times_faster", 1.3)
        for dtype in _BOTH
        for batch in (16, 32, 64)
    ),
    *(
        Goal("cpu", op, shape, dtype, batch, "peak_ratio", 0.7, "eager")
        for op, shape in (
            ("gradient penalty", _CRITIC),
            ("critic loss", _CRITIC),
            ("critic loss", f"{_CRITIC}, layer norm"),
        )
        for dtype in _BOTH
        for batch in (16, 32, 64)
    ),
    *(
        # Four of each of the critic's five layers.
        Goal("cpu", op, _CRITIC, "float32", 16, "convolutions", 20)
        for op in ("gradient penalty", "critic loss")
    ),
    *(
        Goal("cpu", "critic loss", shape, "float32", batch, "times_faster", bound)
        for shape, batch, bound in (
            ("5x5 critic", 16, 1.3),
            ("ResNet critic", 16, 1.3),
            ("spectral norm critic", 16, 1.3),
            ("PatchGAN critic", 16, 1.3),
            ("batch norm critic", 16, 1.3),
            ("self-attention critic", 16, 1.2),
            ("minibatch stddev critic", 32, 1.2),
        )
    ),
    *(
        Goal("cpu", "discriminator loss", shape, "float32", 32, "times_faster", 1.8)
        for shape in (_CRITIC, "grouped ResNet critic")
    ),
    Goal("cpu", "WGAN-GP iteration", _RGB.format(5), "float32", 32, "times_faster", 1.4),
    Goal("cpu", "WGAN iteration", _RGB.format(5), "float32", 32, "times_faster", 1.3),
    Goal("cpu", "DCGAN iteration", "64x64, 1 critic update", "float32", 32, "times_faster", 1.0),
    *(
        Goal("cpu", op, shape.format(layout), "float32", 8, "times_faster", bound, peers)
        for op, shape, bound, peers in (
            ("bias_act, forward and backward", _STYLE, 2.0, ""),
            ("upfirdn2d up 2 with 4x4 taps", _STYLE, 2.0, "depthwise"),
            ("upfirdn2d up 2 with 4x4 taps", _STYLE, 4.0, "eager"),
            ("upfirdn2d down 2 with 4x4 taps", _STYLE, 2.0, "depthwise"),
            ("upfirdn2d down 2 with 4x4 taps", _STYLE, 4.0, "eager"),
            ("filtered_lrelu, 12 taps, up 2, down 2", _STYLE, 4.0, ""),
            ("StyleGAN2 generator, forward", "64x64, {}", 1.5, ""),
        )
        for layout in ("contiguous", "channels-last")
    ),
]

#: Nearly cuDNN's speed, in a graph, is what a convolution alone is to have: what it gains is what
#: is fused around it.
_LEVEL = ("times_faster", 0.9, "", "graph")

_CUDA: list[Goal] = [
    Goal("cuda", "RMSprop and clip", _MANY, "float32", 0, "percent_of_floor", 85),
    Goal("cuda", "RMSprop and clip", _CRITIC, "float32", 0, "times_faster", 5, "foreach"),
    *(
        Goal("cuda", _GENERATOR, "DCGAN-64", dtype, batch, "times_faster", 1.5, "", "graph")
        for dtype in ("bfloat16", "float16")
        for batch in (64, 128, 512)
    ),
    *(
        Goal(
            "cuda", f"convolution, {each}", layer, "bfloat16", 128, "times_faster", 0.9, "", "graph"
        )
        for layer in (layer.shape for layer in (*generator_layers(), *critic_layers()))
        for each in ("forward", "input gradient", "weight gradient")
    ),
    Goal("cuda", _GENERATOR, "DCGAN-64", "bfloat16", 128, "saved_ratio", 0.6, "eager"),
    *(
        Goal("cuda", op, "DCGAN-64", "bfloat16", 64, "host_times_faster", 1.0, "eager")
        for op in (_GENERATOR, _DISCRIMINATOR)
    ),
    *(
        Goal("cuda", "critic loss", _CRITIC, "bfloat16", batch, "times_faster", 2.0, "", "graph")
        for batch in (64, 512)
    ),
    Goal("cuda", "critic loss", _CRITIC, "bfloat16", 64, "times_faster", 4.0),
    *(
        Goal("cuda", op, shape, "bfloat16", 128, "times_faster", bound, peer)
        for op, shape in (
            ("DCGAN iteration", "64x64, 1 critic update"),
            ("WGAN-GP iteration", _RGB.format(5)),
        )
        for peer, bound in (("eager", 3.0), ("torch.compile", 1.5))
    ),
    *(
        # At most 2.5 times the roofline's time.
        Goal("cuda", op, shape, "bfloat16", 512, "percent_of_floor", 40)
        for op, shape in (
            ("DCGAN iteration", "64x64, 1 critic update"),
            ("WGAN-GP iteration", _RGB.format(5)),
        )
    ),
]

GOALS: tuple[Goal, ...] = (*_CPU, *_CUDA)

#: What the library is for, one case each: whole iterations, the penalty, the generator, the clip.
_HEADLINES = {
    ("DCGAN iteration", "64x64, 1 critic update"),
    ("WGAN-GP iteration", _RGB.format(5)),
    ("critic loss", _CRITIC),
    ("gradient penalty", _CRITIC),
    (_GENERATOR, "DCGAN-64"),
    ("RMSprop and clip", _CRITIC),
}
_HEADLINE_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def urgency(case: Case, device: str) -> int:
    """How early a case is measured, so that a limit doesn't leave it out: 0 is the earliest.

    0 has a case of :data:`_HEADLINES`, 1 another that a goal is about, whatever the batch (`quick`
    cases have smaller ones), 2 any other.

    Args:
        case: what may be measured.
        device: "cpu" or "cuda", where.

    Example:
        >>> import torch
        >>> from fastgan.bench.suites import suite_cases
        >>> cases = suite_cases("training", torch.device("cpu"), quick=True)
        >>> sorted({case.op for case in cases if urgency(case, "cpu") == 0})
        ['DCGAN iteration', 'WGAN-GP iteration']
    """
    goals = {
        (goal.op, goal.shape)
        for goal in GOALS
        if (goal.device, goal.op, goal.shape, goal.dtype)
        == (device, case.op, case.shape, case.dtype)
    }
    if not goals:
        return 2
    return 0 if goals & _HEADLINES and case.dtype == _HEADLINE_DTYPE[device] else 1


def judge(results: Iterable[Result], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """Each goal, with the newest number that answers it.

    Args:
        results: from any machines; a GPU's answer the goals for GPUs.
        goals: which.

    Example:
        >>> judge([])[0].words
        'not measured'
    """
    by_device: dict[str, list[Result]] = {"cpu": [], "cuda": []}
    for result in results:
        by_device.setdefault(str(result.machine.get("device", "cpu")), []).append(result)
    newest = {device: list(merged(found).values()) for device, found in by_device.items()}
    verdicts = []
    for goal in goals:
        answers = [
            (row, result)
            for row, result in newest[goal.device]
            if row.provider == "fastgan"
            and (row.op, row.shape, row.dtype, row.batch, row.mode, row.metric)
            == (goal.op, goal.shape, goal.dtype, goal.batch, goal.mode, goal.metric)
            and (not goal.peers or row.detail.startswith(goal.peers))
        ]
        if not answers:
            verdicts.append(Verdict(goal, None, None))
            continue
        # Of one run: an older one's peers were measured against an older fastgan.
        latest = max(result.time for _, result in answers)
        answers = [answer for answer in answers if answer[1].time == latest]
        choose = min if goal.at_least else max
        row, result = choose(answers, key=lambda answer: answer[0].value)
        verdicts.append(Verdict(goal, row, result))
    return verdicts
