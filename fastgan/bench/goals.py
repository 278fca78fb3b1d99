"""The library's target ratios, and whether a result reaches them.

Each goal names its case, so that an unmeasured one is reported as "not measured". Against several
peers the fastest counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastgan.bench.cases import Case
from fastgan.bench.schema import METRICS, Result, Row, merged
from fastgan.bench.suites.layers import critic_layers, generator_layers

#: A ratio with quartiles further apart than this factor is too noisy.
_WIDEST_SPREAD = 2.0


@dataclass(frozen=True)
class Goal:
    """A bound on one number of one case.

    Attributes:
        device: "cpu" or "cuda".
        op: as in a row, like the next four.
        shape: see ``op``.
        dtype: see ``op``.
        batch: see ``op``.
        metric: see ``op``.
        bound: the value to reach.
        peers: prefix of the counted peers' names; empty for all.
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
        """True if the bound is a lower bound."""
        return METRICS[self.metric].better == "higher"


@dataclass(frozen=True)
class Verdict:
    """The outcome of a goal.

    Attributes:
        goal: the goal.
        row: the number, against the fastest peer; None if it wasn't measured.
        result: the number's source.
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


def _goals(
    device: str,
    ops: str | Sequence[str],
    shapes: str | Sequence[str],
    dtypes: str | Sequence[str],
    batches: int | Sequence[int],
    bound: float,
    metric: str = "times_faster",
    peers: str = "",
    mode: str = "launched",
) -> list[Goal]:
    """The same bound for every op, shape, dtype and batch."""
    given: tuple[Any, ...] = (ops, shapes, dtypes, batches)
    axes: list[Any] = [[axis] if isinstance(axis, (str, int)) else axis for axis in given]
    return [
        Goal(device, op, shape, dtype, batch, metric, bound, peers, mode)
        for op, shape, dtype, batch in itertools.product(*axes)
    ]


_CRITIC, _MANY = "DCGAN-64 critic", "64 million weights in 200 tensors"
_LAYER_NORM = f"{_CRITIC}, layer norm"
_OTHERS = ("5x5", "ResNet", "spectral norm", "PatchGAN", "batch norm")
_BOTH = ("float32", "bfloat16")
_NETWORKS = ("generator, forward and backward", "discriminator, forward and backward")
_MAPS = ("512x4x4", "256x8x8", "128x16x16", "64x32x32")
_LABELLED = ("Conditional DCGAN", "ACGAN", "InfoGAN")
_FIVE, _ONE = "64x64, 5 critic updates", "64x64, 1 critic update"
_SMALL = "32x32, 1 critic update"
_STYLE = ("64x64x64, contiguous", "64x64x64, channels-last")
_RESAMPLE = ("upfirdn2d up 2 with 4x4 taps", "upfirdn2d down 2 with 4x4 taps")
_STYLEGAN2 = ("64x64, contiguous", "64x64, channels-last")
_BATCHES = (16, 32, 64)
_PASSES = tuple(f"convolution, {p}" for p in ("forward", "input gradient", "weight gradient"))
_LAYERS = tuple(layer.shape for layer in (*generator_layers(), *critic_layers()))

GOALS: tuple[Goal, ...] = (
    *_goals("cpu", "RMSprop and clip", (_CRITIC, _MANY), "float32", 0, 2.5),
    *_goals("cpu", "Adam and clip", (_CRITIC, _MANY), "float32", 0, 1.0, peers="fused"),
    *_goals("cpu", "clip alone", (_CRITIC, _MANY), "float32", 0, 1.0),
    *_goals("cpu", "bn_act, forward and backward", _MAPS, "float32", 64, 1.5, peers="eager"),
    *_goals("cpu", _NETWORKS, "DCGAN-64", _BOTH, 64, 1.0),
    *_goals("cpu", _NETWORKS[0], "DCGAN-64", "float32", 64, 0.75, "peak_ratio", "eager"),
    *_goals("cpu", "gradient penalty", _CRITIC, _BOTH, _BATCHES, 1.8),
    *_goals("cpu", "critic loss", _CRITIC, _BOTH, _BATCHES, 1.45),
    *_goals("cpu", "critic loss", _LAYER_NORM, _BOTH, _BATCHES, 1.3),
    *_goals("cpu", "gradient penalty", _CRITIC, _BOTH, _BATCHES, 0.7, "peak_ratio", "eager"),
    *_goals("cpu", "critic loss", _CRITIC, _BOTH, _BATCHES, 0.7, "peak_ratio", "eager"),
    *_goals("cpu", "critic loss", _LAYER_NORM, _BOTH, _BATCHES, 0.7, "peak_ratio", "eager"),
    # Four of each of the critic's five layers.
    *_goals("cpu", ("gradient penalty", "critic loss"), _CRITIC, "float32", 16, 20, "convolutions"),
    *_goals("cpu", "critic loss", [f"{name} critic" for name in _OTHERS], "float32", 16, 1.3),
    *_goals("cpu", "critic loss", "self-attention critic", "float32", 16, 1.2),
    *_goals("cpu", "critic loss", "minibatch stddev critic", "float32", 32, 1.2),
    *_goals("cpu", "discriminator loss", (_CRITIC, "grouped ResNet critic"), "float32", 32, 1.8),
    *_goals("cpu", "WGAN-GP iteration", _FIVE, "float32", 32, 1.4),
    *_goals("cpu", "WGAN iteration", _FIVE, "float32", 32, 1.3),
    *_goals("cpu", "DCGAN iteration", _ONE, "float32", 32, 1.0),
    *_goals("cpu", "SNGAN iteration", _SMALL, "float32", 32, 1.3),
    *_goals("cpu", "StyleGAN2 iteration", _SMALL, "float32", 32, 1.3),
    *_goals("cpu", "R3GAN iteration", _SMALL, "float32", 32, 1.3),
    *_goals("cpu", "CycleGAN iteration", _ONE, "float32", 4, 1.2),
    *_goals("cpu", ("GAN iteration", "BigGAN iteration"), _SMALL, "float32", 32, 1.0),
    *_goals("cpu", [f"{name} iteration" for name in _LABELLED], _ONE, "float32", 32, 1.0),
    *_goals("cpu", "pix2pix iteration", _ONE, "float32", 4, 1.0),
    *_goals("cpu", "bias_act, forward and backward", _STYLE, "float32", 8, 2.0),
    *_goals("cpu", _RESAMPLE, _STYLE, "float32", 8, 2.0, peers="depthwise"),
    *_goals("cpu", _RESAMPLE, _STYLE, "float32", 8, 4.0, peers="eager"),
    *_goals("cpu", "filtered_lrelu, 12 taps, up 2, down 2", _STYLE, "float32", 8, 4.0),
    *_goals("cpu", "StyleGAN2 generator, forward", _STYLEGAN2, "float32", 8, 1.5),
    *_goals("cuda", "RMSprop and clip", _MANY, "float32", 0, 85, "percent_of_floor"),
    *_goals("cuda", "RMSprop and clip", _CRITIC, "float32", 0, 5, peers="foreach"),
    *_goals(
        *("cuda", _NETWORKS[0], "DCGAN-64", ("bfloat16", "float16"), (64, 128, 512), 1.5),
        mode="graph",
    ),
    # Nearly cuDNN's speed: the gain is in the fused norm and activation.
    *_goals("cuda", _PASSES, _LAYERS, "bfloat16", 128, 0.9, mode="graph"),
    *_goals("cuda", _NETWORKS[0], "DCGAN-64", "bfloat16", 128, 0.6, "saved_ratio", "eager"),
    *_goals("cuda", _NETWORKS, "DCGAN-64", "bfloat16", 64, 1.0, "host_times_faster", "eager"),
    *_goals("cuda", "critic loss", _CRITIC, "bfloat16", (64, 512), 2.0, mode="graph"),
    *_goals("cuda", "critic loss", _CRITIC, "bfloat16", 64, 4.0),
    *_goals("cuda", "DCGAN iteration", _ONE, "bfloat16", 128, 3.0, peers="eager"),
    *_goals("cuda", "DCGAN iteration", _ONE, "bfloat16", 128, 1.5, peers="torch.compile"),
    *_goals("cuda", "WGAN-GP iteration", _FIVE, "bfloat16", 128, 3.0, peers="eager"),
    *_goals("cuda", "WGAN-GP iteration", _FIVE, "bfloat16", 128, 1.5, peers="torch.compile"),
    # At most 2.5 times the roofline's time.
    *_goals("cuda", "DCGAN iteration", _ONE, "bfloat16", 512, 40, "percent_of_floor"),
    *_goals("cuda", "WGAN-GP iteration", _FIVE, "bfloat16", 512, 40, "percent_of_floor"),
)

#: One case for each main purpose: whole iterations, the penalty, the generator, the clip.
_HEADLINES = {
    ("DCGAN iteration", _ONE),
    ("WGAN-GP iteration", _FIVE),
    ("critic loss", _CRITIC),
    ("gradient penalty", _CRITIC),
    (_NETWORKS[0], "DCGAN-64"),
    ("RMSprop and clip", _CRITIC),
}
_HEADLINE_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def urgency(case: Case, device: str) -> int:
    """Ranks a case: lower ranks are measured first, before a time limit.

    0 for :data:`_HEADLINES`, 1 for other cases with a goal at any batch (`quick` cases have smaller
    ones), 2 for the rest.

    Args:
        case: what may be measured.
        device: "cpu" or "cuda".

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
    """Each goal, with its newest number.

    Args:
        results: from any machines; those of GPUs count for GPUs' goals.
        goals: which.

    Example:
        >>> judge([])[0].words
        'not measured'
    """
    by_device: dict[str, list[Result]] = {"cpu": [], "cuda": []}
    for result in results:
        by_device.setdefault(str(result.machine.get("device", "cpu")), []).append(result)
    newest = {device: list(merged(given).values()) for device, given in by_device.items()}
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
        # From one run: an older run's peers were measured against an older fastgan.
        latest = max(result.time for _, result in answers)
        answers = [answer for answer in answers if answer[1].time == latest]
        choose = min if goal.at_least else max
        row, result = choose(answers, key=lambda answer: answer[0].value)
        verdicts.append(Verdict(goal, row, result))
    return verdicts
