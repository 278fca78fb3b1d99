"""Measures whole training runs against plain PyTorch, into benchmarks/results/training-KIND.json.

    python benchmarks/record_training.py [--device cpu|cuda] [--threads N] [--rounds N]
        [--models dcgan wgan wgan-gp] [--dtypes float32 bfloat16] [--batches 32] [--no-compile]

DCGAN, WGAN and WGAN-GP at 64x64, with each paper's number of critic updates. Ours is
`fastgan.training.Trainer` itself, as `fastgan train` runs it, data, metrics and moving average
included (CUDA graphs too, on a GPU). Peers are the cases "training" of fastgan.bench: the same
training in fastgan.reference's plain PyTorch, channels-last, in the same precision, and that under
torch.compile. They take turns: after each step of the run, from its own callback, every peer makes
one. The file holds time, commit, machine, load and versions, as bench-*.json do, and

    rows        one for each model, dtype and batch:
        rounds                  how often each contender made a step, in turns
        median_ms               milliseconds of a step (critic updates and generator's) of each
        images_per_second       real images a second of each, from the median
        best_peer               the contender other than fastgan with the least median
        times_faster            its median over fastgan's
        times_faster_by_turn    median and quartiles of the ratio within one turn
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fastgan.bench.cases import Case, Setting
from fastgan.bench.machine import commit, machine_facts, utc_now, versions
from fastgan.bench.suites.iterations import cases
from fastgan.bench.timing import Call
from fastgan.data import MemorySource
from fastgan.training import Callback, TrainConfig, Trainer

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {"dcgan": "DCGAN iteration", "wgan": "WGAN iteration", "wgan-gp": "WGAN-GP iteration"}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
WARM_UP = 5
COPIES = 4


class Turns(Callback):
    """Lets every peer make a step after each of the trainer's, and times all."""

    def __init__(self, peers: dict[str, Call], device: torch.device) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in ("fastgan", *peers)}
        self._peers = peers
        self._device = device
        self._began = 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._began = self._now()

    def on_step(self, trainer: Trainer) -> None:
        taken = {"fastgan": self._now() - self._began}
        # Whoever comes first finds the caches as the last one left them: another one each round.
        names = list(self._peers)
        first = trainer.step % len(names)
        for name in names[first:] + names[:first]:
            began = self._now()
            self._peers[name](trainer.step % COPIES)
            taken[name] = self._now() - began
        if trainer.step > WARM_UP:
            for name, seconds in taken.items():
                self.seconds[name].append(seconds)
        self._began = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measured(case: Case, model: str, batch: int, rounds: int, options: argparse.Namespace) -> dict:
    device = torch.device(options.device)
    mode = None if options.no_compile else options.mode
    calls = case.prepare(Setting(device=device, copies=COPIES, compile_mode=mode))
    turns = Turns({name: call for name, call in calls.items() if name != "fastgan"}, device)
    images = torch.rand(max(256, batch), 3, 64, 64) * 2 - 1
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            out=folder,
            model=model,
            image_size=64,
            batch_size=batch,
            precision=PRECISIONS[case.dtype],
            device=options.device,
            steps=WARM_UP + rounds,
            sample_every=10**9,
            checkpoint_every=10**9,
            log_every=25,
        )
        Trainer(config, source=MemorySource("random", images), callbacks=[turns]).run()
    median = {name: statistics.median(values) for name, values in turns.seconds.items()}
    best = min((name for name in median if name != "fastgan"), key=median.__getitem__)
    pairs = zip(turns.seconds[best], turns.seconds["fastgan"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "model": model,
        "dtype": case.dtype,
        "batch": batch,
        "rounds": len(ratios),
        "median_ms": {name: round(1e3 * value, 3) for name, value in median.items()},
        "images_per_second": {name: round(case.images / v, 1) for name, v in median.items()},
        "best_peer": best,
        "times_faster": round(median[best] / median["fastgan"], 3),
        "times_faster_by_turn": [round(value, 3) for value in quartiles],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", choices=list(PRECISIONS))
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--mode", default="default", help="of torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="the result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    report = {
        "time": utc_now(),
        "commit": commit(),
        "machine": {**machine_facts(device), "threads": options.threads},
        "load": {"before": os.getloadavg()[0]},
        "versions": versions(),
        "rows": [],
    }
    for case in cases(device, quick=False):
        model = next(name for name, op in MODELS.items() if op == case.op)
        if (
            model in options.models
            and (options.dtypes is None or case.dtype in options.dtypes)
            and (options.batches is None or case.batch in options.batches)
        ):
            row = measured(case, model, case.batch, options.rounds, options)
            report["rows"].append(row)
            print(model, case.dtype, case.batch, row["images_per_second"], row["times_faster"])
    report["load"]["after"] = os.getloadavg()[0]
    path = options.out or RESULTS / f"training-{options.device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
