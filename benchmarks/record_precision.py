"""Trains the first five models on digits in fp32, in bf16 and by fastgan.reference, and evaluates.

    python benchmarks/record_precision.py [--device cpu|cuda] [--steps N] [--seeds 0 1 2]
        [--models gan dcgan cgan wgan wgan-gp]

Writes benchmarks/results/precision-KIND.json: time, commit, machine, versions, and

    rows        one for each model, contender and seed: what `fastgan evaluate` finds
                (docs/evaluation.md), and how long the training took
    verdicts    for each model and contender other than fp32, and each of MEASURES: the difference
                of the means over the seeds, the noise, and whether the contender is no worse, which
                is no further on the worse side than the noise
    no_worse    whether bf16 is no worse for any model: then, and only then, `--precision auto` is
                bf16 on this kind of device (fastgan/training/precision.py; a test ties the two)
    as_good_as_the_reference    whether fp32 is no worse than the reference for any model

The noise is what the difference of two means of equal truth exceeds in one of 20 such records: a
quantile of Student's t with Welch's degrees of freedom, at 0.05 over the number of comparisons
(Bonferroni), times the difference's standard error. With two standard errors for each comparison,
of fifteen that tell nothing one or two would be called worse.

The reference is trained by fastgan.reference's steps with torch's optimisers on the same images in
the same order, from the same settings; its samples come from a moving average of the same decay.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from scipy import stats
from torch import Tensor, nn

from fastgan.bench.machine import context
from fastgan.bench.suites.iterations import reference_networks, reference_steps
from fastgan.data import load_data, open_stream
from fastgan.evaluation.report import evaluate_samples
from fastgan.sampling.batches import generate_images
from fastgan.sampling.noise import sample_noise
from fastgan.training import TrainConfig, Trainer
from fastgan.training.networks import DataShape
from fastgan.training.optimizer_kinds import build_torch_optimizer

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLES = 1000
# What is compared, and which way is worse: 1 for up.
MEASURES = {"frechet_distance": 1, "coverage": -1, "confidence_ratio": -1}
LEVEL = 0.05
CONTENDERS = ("fp32", "bf16", "reference")
# Settings under which a small set is learnt in minutes; docs/training.md.
SETTINGS = {
    "gan": {},
    "dcgan": {"batch_size": 64},
    "cgan": {"batch_size": 64},
    "wgan": {"lr": 5e-4, "n_critic": 2, "batch_size": 64},
    "wgan-gp": {"lr": 1e-3, "beta1": 0.5, "n_critic": 2, "lr_decay": "linear", "batch_size": 64},
}
MODELS = tuple(SETTINGS)


def settings(model: str, seed: int, options: argparse.Namespace) -> dict:
    small = {"ngf": 32, "ndf": 32, "ema_decay": 0.99}
    run = {"model": model, "steps": options.steps, "seed": seed, "device": options.device}
    never = {"sample_every": 10**9, "checkpoint_every": 10**9}
    return {**small, **run, **never, **SETTINGS[model]}


def trained_by_us(model: str, seed: int, precision: str, options: argparse.Namespace) -> tuple:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(out=folder, precision=precision, **settings(model, seed, options))
        trainer = Trainer(config)
        seconds = trainer.run().seconds
    return trainer.ema.module, trainer.config, seconds


def trained_by_the_reference(model: str, seed: int, options: argparse.Namespace) -> tuple:
    config = TrainConfig(out="unused", **settings(model, seed, options)).resolved()
    source = load_data("digits", image_size=config.image_size)
    torch.manual_seed(seed)
    classes = source.num_classes if config.conditional else None
    shape = DataShape("digits", channels=1, image_size=config.image_size, num_classes=classes)
    networks = [network.to(options.device) for network in reference_networks(config, shape)]
    generator, _ = networks
    optimizers = [
        build_torch_optimizer(config, network, lr)
        for network, lr in zip(networks, (config.lr_g, config.lr_d), strict=True)
    ]
    average = copy.deepcopy(generator).eval().requires_grad_(False)
    random = torch.Generator(options.device).manual_seed(seed)

    critic_step, generator_step = reference_steps(config, networks, optimizers, random, None)

    def noise() -> Tensor:
        size = config.batch_size
        return sample_noise(size, config.nz, config.noise, generator=random, device=options.device)

    began = time.perf_counter()
    with open_stream(
        source, batch_size=config.batch_size, seed=seed, device=options.device
    ) as stream:
        for step in range(config.steps):
            for optimizer, lr in zip(optimizers, (config.lr_g, config.lr_d), strict=True):
                for group in optimizer.param_groups:
                    decay = 1 - step / config.steps if config.lr_decay == "linear" else 1.0
                    group["lr"] = lr * decay
            for _ in range(config.n_critic):
                real, labels = next(stream)
                critic_step(real, noise(), **({"labels": labels} if config.conditional else {}))
            given = {}
            if config.conditional:
                shape, where = (config.batch_size,), options.device
                given["labels"] = torch.randint(classes, shape, generator=random, device=where)
            generator_step(real, noise(), **given)
            with torch.no_grad():
                decay = min(config.ema_decay, (2 + step) / (11 + step))
                for averaged, current in zip(
                    average.parameters(), generator.parameters(), strict=True
                ):
                    averaged.lerp_(current, 1 - decay)
                for averaged, current in zip(average.buffers(), generator.buffers(), strict=True):
                    averaged.copy_(current)
    return average, config, time.perf_counter() - began


def evaluated(generator: nn.Module, config: TrainConfig, seed: int) -> dict:
    source = load_data("digits", image_size=config.image_size)
    random = torch.Generator().manual_seed(seed)
    z = sample_noise(SAMPLES, config.nz, config.noise, generator=random)
    labels = None
    if config.conditional:
        labels = torch.randint(source.num_classes, (SAMPLES,), generator=random)
    generated = generate_images(generator, z, labels)
    real, real_labels = source.get(range(len(source)))
    report = evaluate_samples(generated, real, labels=real_labels, num_classes=source.num_classes)
    scores = report.to_dict()
    names = (*MEASURES, "precision", "recall", "density")
    return {name: scores[name] for name in names}


def noise_of(a: list[float], b: list[float], comparisons: int) -> float:
    """How far the means may lie apart, on the worse side, by chance."""
    shares = [statistics.variance(values) / len(values) for values in (a, b)]
    if sum(shares) == 0:
        return 0.0
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (a, b), strict=True)
    )
    return float(stats.t.ppf(1 - LEVEL / comparisons, freedom)) * math.sqrt(sum(shares))


def verdict(rows: list[dict], model: str, contender: str, baseline: str, comparisons: int) -> dict:
    """Whether the model trained by ``contender`` is no worse than by ``baseline``, within noise."""
    judged = {"model": model, "contender": contender, "against": baseline, "measures": {}}
    for name, worse in MEASURES.items():
        a, b = (
            [row[name] for row in rows if (row["model"], row["contender"]) == (model, trained_by)]
            for trained_by in (contender, baseline)
        )
        difference = statistics.fmean(a) - statistics.fmean(b)
        noise = noise_of(a, b, comparisons)
        judged["measures"][name] = {
            "difference": difference,
            "noise": noise,
            "no_worse": worse * difference <= noise,
        }
    judged["no_worse"] = all(measure["no_worse"] for measure in judged["measures"].values())
    return judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, help="the result file")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("--seeds: expected at least two, whose spread is the noise")
    rows = []
    for model in options.models:
        for seed in options.seeds:
            for contender in CONTENDERS:
                if contender == "reference":
                    generator, config, seconds = trained_by_the_reference(model, seed, options)
                else:
                    generator, config, seconds = trained_by_us(model, seed, contender, options)
                scores = evaluated(generator, config, seed)
                rows.append({"model": model, "contender": contender, "seed": seed, **scores})
                rows[-1]["training_seconds"] = round(seconds, 1)
                print(rows[-1], flush=True)
    comparisons = len(options.models) * len(MEASURES)
    against_fp32, against_reference = (
        [verdict(rows, model, contender, baseline, comparisons) for model in options.models]
        for contender, baseline in (("bf16", "fp32"), ("fp32", "reference"))
    )
    complete = set(options.models) == set(MODELS) and len(options.seeds) >= 3
    report = {
        **context(torch.device(options.device)),
        "settings": {"steps": options.steps, "samples": SAMPLES, "models": SETTINGS},
        "rows": rows,
        "verdicts": against_fp32 + against_reference,
        "no_worse": complete and all(v["no_worse"] for v in against_fp32),
        "as_good_as_the_reference": complete and all(v["no_worse"] for v in against_reference),
    }
    path = options.out or RESULTS / f"precision-{options.device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"no worse: {report['no_worse']}; wrote {path}; set BF16_TRAINS_AS_WELL accordingly")


if __name__ == "__main__":
    main()
