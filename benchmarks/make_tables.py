"""Writes the tables of the README and the docs from the committed results.

    python benchmarks/make_tables.py           # make tables
    python benchmarks/make_tables.py --check   # exit code 1 if a table isn't what it would write

A table stands between two marks, `<!-- table: NAME -->` and `<!-- end of table -->`, in README.md
or a page of docs/. What is between them is replaced. The names:

    headline    the README's: a whole training iteration, and how many goals are reached
    models      the README's: every model of `fastgan train`
    demo        the README's: a run of `make demo`, from demo-cpu.json, which record_demo.py writes
    family-sngan, ...    docs/sngan.md's: before and after training on digits, families-cpu.json
    iteration-sngan, ... the same page's: how fast an iteration of training is
    summary     docs/performance.md's: every goal on this project's machines, those not measured too
    goals-cpu, goals-cuda    docs/measurements.md's: the same in full, for one kind of device
    cases-cpu-ops, ...       every case of a suite, rows where a peer is faster included
    static-sm_80, ...        what the compiler made of each kernel
    optimizers  docs/optimisers.md's: every case of the optimisers
    faults      docs/reliability.md's, from faults.json, which `make attack` writes
    health      the same page's, of its training runs
    penalty     docs/gradient-penalty.md's: the goals of the penalty, by batch

Results are benchmarks/results/bench-*.json (schema: fastgan/bench/schema.py) unless said otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from fastgan.bench.goals import GOALS, Goal, Verdict, judge
from fastgan.bench.schema import Result, Row, read_result
from fastgan.bench.suites.optimizers import OPS
from fastgan.bench.summary import lines
from fastgan.bench.tables import case_table, goal_cells, goal_table, markdown_table
from fastgan.training.model_kinds import MODEL_KINDS, ModelKind

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_NAMES = frozenset(page.stem for page in PAGES)
BLOCK = re.compile(r"<!-- table: ([a-z0-9_-]+) -->\n(.*?)<!-- end of table -->", flags=re.S)


# --- Results --------------------------------------------------------------------------------------


def load_results(folder: Path = RESULTS) -> list[tuple[Path, Result]]:
    """All of them, each with its file."""
    return [(path, read_result(path)) for path in sorted(folder.glob("bench-*.json"))]


def load(name: str) -> dict:
    """A result file of another format."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


# --- Tables ---------------------------------------------------------------------------------------


def make_table(name: str, results: list[tuple[Path, Result]], up: str = "") -> str:
    """The table of that name; ``up`` leads from its page to the repository's root.

    Raises:
        ValueError: there is no such table.
    """
    kind, _, rest = name.partition("-")
    if name in ("headline", "models", "summary", "penalty"):
        makers = {"headline": headline, "models": models, "summary": summary, "penalty": penalty}
        return makers[name](results, up)
    if name in ("demo", "faults", "health"):
        return {"demo": demo, "faults": faults, "health": health}[name]()
    if kind == "family":
        return family(rest)
    if kind == "iteration":
        return (
            cases(
                results, up, "cpu", lambda row: row.op.startswith(f"{_PAPERS[rest][0]} iteration")
            )
            or "Not measured yet."
        )
    if kind == "goals" and rest in ("cpu", "cuda"):
        goals = [goal for goal in GOALS if goal.device == rest]
        verdicts = judge([result for _, result in results], goals)
        return sources(verdicts, results, up) + "\n\n" + goal_table(verdicts).markdown()
    if kind == "cases":
        device, _, suite = rest.partition("-")
        return cases(results, up, device, lambda row: row.suite == suite) or (
            f"`{device}`, suite {suite}: not measured."
        )
    if name == "optimizers":
        return "\n\n".join(
            cases(results, up, device, lambda row: row.op in OPS) or f"`{device}`: not measured."
            for device in ("cpu", "cuda")
        )
    if kind == "static":
        from static_report import table

        return table(rest)
    raise ValueError(f"there is no table {name!r}")


def cases(
    results: list[tuple[Path, Result]], up: str, device: str, wanted: Callable[[Row], bool]
) -> str:
    """The wanted cases that were measured on a kind of device, a table for each file.

    Below it is said what of them was left out, and why.
    """
    parts = []
    for path, result in results:
        shown = [line for line in lines(result) if wanted(line.row)]
        if shown and result.machine["device"] == device:
            parts += [source([(path, result)], up), case_table(shown).markdown()]
            names = tuple(f"{case_name(line.row)}: " for line in shown)
            notes = [f"- {note}" for note in result.notes if note.startswith(names)]
            parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts)


def case_name(row: Row) -> str:
    """As in :attr:`fastgan.bench.cases.Case.name`, which notes begin with."""
    return ", ".join([row.op, row.shape, row.dtype] + ([f"batch {row.batch}"] if row.batch else []))


def penalty(results: list[tuple[Path, Result]], up: str) -> str:
    """How many times faster the penalty and the critic loss are, a column a batch."""
    goals = [
        goal
        for goal in GOALS
        if goal.device == "cpu"
        and goal.op in ("gradient penalty", "critic loss", "discriminator loss")
        and goal.metric == "times_faster"
    ]
    verdicts = judge([result for _, result in results], goals)
    by_case: dict[tuple[str, str], dict[int, str]] = {}
    for verdict in verdicts:
        goal = verdict.goal
        what = f"{goal.op}, {goal.shape}".replace(f", {_OUR_CRITIC}", "")
        of_batch = by_case.setdefault((what, goal.dtype), {})
        of_batch[goal.batch] = _range([verdict])
    batches = sorted({goal.batch for goal in goals})
    body = [(*case, *(of.get(batch, "") for batch in batches)) for case, of in by_case.items()]
    head = ["", "in", *(f"N = {batch}" for batch in batches)]
    return f"{sources(verdicts, results, up)}\n\n{markdown_table(head, body)}"


def source(used: Iterable[tuple[Path, Result]], up: str) -> str:
    """The results' machines and versions, and for each links to its files, with their dates."""
    files: dict[str, list[str]] = {}
    for path, result in used:
        threads = result.machine.get("threads")
        cpu = f", {threads} threads" if result.machine["device"] == "cpu" else ""
        where = f"{result.device_name}{cpu}, torch {result.versions['torch']}"
        link = f"[`{path.stem}`]({up}benchmarks/results/{path.name}) ({result.time[:10]})"
        files.setdefault(where, []).append(link)
    return "; ".join(f"{where}: {', '.join(links)}" for where, links in files.items())


def sources(verdicts: list[Verdict], results: list[tuple[Path, Result]], up: str) -> str:
    """Where the numbers are from."""
    used = [
        (path, result)
        for path, result in results
        if any(result is verdict.result for verdict in verdicts)
    ]
    return f"{source(used, up)}." if used else "Not measured."


def headline(results: list[tuple[Path, Result]], up: str) -> str:
    """An iteration of the three first models on a CPU, and how many of the goals are reached."""
    verdicts = judge([result for _, result in results], [g for g in GOALS if g.device == "cpu"])
    steps = [
        verdict
        for verdict in verdicts
        if verdict.row is not None
        and verdict.goal.op in ("WGAN-GP iteration", "WGAN iteration", "DCGAN iteration")
        and verdict.goal.metric == "times_faster"
    ]
    body = [(v.goal.op, v.goal.shape, v.goal.dtype, _range([v])) for v in steps]
    table = markdown_table(["2 CPU cores", "model", "in", "times faster"], body)
    measured = [verdict.words for verdict in verdicts if verdict.row is not None]
    passed, near, noisy = map(measured.count, ("pass", "within the spread", "too noisy"))
    missed = len(measured) - passed - near - noisy
    on_gpus = any(result.machine["device"] == "cuda" for _, result in results)
    gpu = "" if on_gpus else " On GPUs nothing was measured yet."
    return (
        f"{table}\n\n{sources(steps, results, up)}\n\nOf {len(measured)} goals that were measured "
        f"{passed} are reached, {near} within the spread, {noisy} too noisy and {missed} missed: "
        f"[all of them]({up}docs/performance.md#results).{gpu}"
    )


#: Of each model its name, its paper and the paper's number at arXiv.
_PAPERS = {
    "gan": ("GAN", "Goodfellow et al. 2014", "1406.2661"),
    "dcgan": ("DCGAN", "Radford et al. 2015", "1511.06434"),
    "cgan": ("Conditional DCGAN", "Mirza & Osindero 2014", "1411.1784"),
    "acgan": ("ACGAN", "Odena et al. 2017", "1610.09585"),
    "infogan": ("InfoGAN", "Chen et al. 2016", "1606.03657"),
    "wgan": ("WGAN", "Arjovsky et al. 2017", "1701.07875"),
    "wgan-gp": ("WGAN-GP", "Gulrajani et al. 2017", "1704.00028"),
    "sngan": ("SNGAN", "Miyato et al. 2018", "1802.05957"),
    "biggan": ("BigGAN", "Brock et al. 2018", "1809.11096"),
    "stylegan2": ("StyleGAN2", "Karras et al. 2020", "1912.04958"),
    "r3gan": ("R3GAN", "Huang et al. 2025", "2501.05441"),
    "cyclegan": ("CycleGAN", "Zhu et al. 2017", "1703.10593"),
    "pix2pix": ("pix2pix", "Isola et al. 2017", "1611.07004"),
}


def models(results: list[tuple[Path, Result]], up: str) -> str:
    """Every model, and how many times faster an iteration of its training is on a CPU."""
    body, used = [], {}
    for model, kind in MODEL_KINDS.items():
        title, paper, number = _PAPERS[model]
        name = f"[{title}]({up}docs/{model}.md)" if model in _NAMES else title
        measured = [
            (result.time, line.ratio.value, path, result)
            for path, result in results
            for line in lines(result)
            if (line.row.op, line.row.dtype) == (f"{title} iteration", "float32")
            and line.ratio is not None
            and result.machine["device"] == "cpu"
        ]
        faster = "not measured"
        if measured:
            _, value, path, result = max(measured, key=lambda entry: entry[0])
            faster, used[path] = f"{value:.2f}", result
        arxiv = f"[{paper}](https://arxiv.org/abs/{number})"
        body.append((name, arxiv, _learns_from(kind), f"`--model {model}`", faster))
    table = markdown_table(["", "paper", "learns from", "`fastgan train`", "times faster"], body)
    files = source(used.items(), up)
    return f"{table}\n\n{files}." if files else table


def _learns_from(kind: ModelKind) -> str:
    if kind.pairs:
        return "pairs of images" if kind.pairs == "paired" else "two sets of images"
    return "images, labels" + ("" if kind.defaults.get("conditional") else " with `--conditional`")


def summary(results: list[tuple[Path, Result]], up: str) -> str:
    """Of every op: what was measured, from the hardest case to the easiest, by kind of device."""
    verdicts = judge([result for _, result in results])
    parts = []
    for device, title in (("cpu", "2 CPU cores"), ("cuda", "GPU")):
        by_case: dict[tuple[str, ...], list[Verdict]] = {}
        for verdict in verdicts:
            if verdict.goal.device == device and verdict.goal.metric in _NUMBERS:
                by_case.setdefault(_group(verdict.goal), []).append(verdict)
        if all(verdict.row is None for group in by_case.values() for verdict in group):
            parts.append(
                f"{title}: not measured; [goals]({up}docs/measurements.md#{title.lower()})."
            )
            continue
        body = [(*case, _range(group), _verdict(group)) for case, group in by_case.items()]
        parts.append(markdown_table(["what", "in", "number", "goal", title, ""], body))
    return "\n\n".join([*parts, sources(verdicts, results, up)])


#: Metric -> its name in the summary.
_NUMBERS = {"times_faster": "times faster", "peak_ratio": "peak memory, of eager's"}


#: What a goal is about unless it says otherwise.
_OUR_CRITIC = "DCGAN-64 critic"


def _what(goal: Goal) -> str:
    what = goal.op.replace(", forward and backward", "")
    if goal.op in ("critic loss", "discriminator loss") and not goal.shape.startswith(_OUR_CRITIC):
        return f"{what}, others' critics"
    return what + (", layer norm" if "layer norm" in goal.shape else "")


def _group(goal: Goal) -> tuple[str, str, str, str]:
    """The line of the summary that a goal is told in: goals that differ in nothing else."""
    number = _NUMBERS[goal.metric] + (", in a CUDA graph" if goal.mode == "graph" else "")
    if goal.device == "cuda" and goal.peers:
        number += f" than {goal.peers}"
    bound = goal_cells(Verdict(goal, None, None))[2]
    return _what(goal), goal.dtype, number, bound


def _range(verdicts: list[Verdict]) -> str:
    values = sorted(verdict.row.value for verdict in verdicts if verdict.row is not None)
    if not values:
        return "not measured"
    low, high = f"{values[0]:.2f}", f"{values[-1]:.2f}"
    return low if low == high else f"{low} to {high}"


def _verdict(verdicts: list[Verdict]) -> str:
    words = [verdict.words for verdict in verdicts]
    measured = [word for word in words if word != "not measured"]
    if not measured:
        return ""
    passed = measured.count("pass")
    said = ["pass" if passed == len(measured) else f"{passed} of {len(measured)} pass"]
    short = [word for word in measured if word.startswith("falls")]
    if short:
        worst = max(short, key=lambda word: int(re.findall(r"\d+", word)[0]))
        said.append(worst.replace("falls", "the worst falls"))
    rest = {word: measured.count(word) for word in ("within the spread", "too noisy")}
    said += [f"{count} {word}" for word, count in rest.items() if count]
    missing = len(words) - len(measured)
    return ", ".join(said) + (f"; {missing} not measured" if missing else "")


def faults() -> str:
    """What `make attack` injected, and how it ended."""
    record = load("faults.json")
    ends = ("tries", "survived", "refused", "lost")
    rows = [
        (kind.replace("_", " "), counts["what"], counts) for kind, counts in record["kinds"].items()
    ]
    body = [(kind, what, *(f"{counts[end]:,}" for end in ends)) for kind, what, counts in rows]
    sums = [f"{sum(counts[end] for *_, counts in rows):,}" for end in ends]
    table = markdown_table(["kind", "what must hold", *ends], [*body, ("**all**", "", *sums)])
    return (
        f"{table}\n\n{record['minutes']:g} minutes, seed {record['seed']}, torch {record['torch']}."
    )


def health() -> str:
    """What the health monitor said of each training run."""
    body = []
    for run in load("faults.json")["runs"]:
        said = ", ".join(f"{name} at step {step}" for step, name in run["named"])
        body.append((run["run"], " or ".join(run["has"]) or "nothing", said or "nothing"))
    return markdown_table(["run", "what it has", "what was said"], body)


def demo() -> str:
    """How long the demo trained, and what an evaluation found."""
    record = load("demo-cpu.json")
    evaluation = record["evaluation"]
    top = "mean top probability a classifier gives 1,000 samples, over held-out real digits'"
    accuracy = f"{100 * evaluation['classifier_accuracy']:.1f}%"
    body = [
        ("training", f"{record['training_seconds']:.0f} s"),
        (top, f"{evaluation['confidence_ratio']:.3f}"),
        ("coverage of the real digits", f"{evaluation['coverage']:.2f}"),
        (
            "Fréchet distance to them; of real digits from real ones",
            f"{evaluation['frechet_distance']:.1f}; {evaluation['frechet_distance_real']:.1f}",
        ),
        ("the rarest of the ten classes", f"{100 * min(evaluation['class_histogram']):.1f}%"),
        ("the classifier's accuracy on held-out real digits", accuracy),
    ]
    return markdown_table(["", ""], body)


def family(model: str) -> str:
    """What an evaluation found of a model's samples after one step and after all."""
    record = load("families-cpu.json")["models"].get(model)
    if record is None:
        return "Not measured yet."
    names = {
        "frechet_distance": "Fréchet distance to real digits",
        "coverage": "coverage of them",
        "confidence_ratio": "a classifier's top probability, over real digits'",
    }
    body = [
        (text, f"{record['start'][name]:.3g}", f"{record['end'][name]:.3g}")
        for name, text in names.items()
        if record["end"][name] is not None  # without labels no classifier is trained
    ]
    flags = f"`fastgan train --model {model} {record['flags']}`"
    machine, seconds = record["machine"], record["training_seconds"]
    run = f"{machine['processor']}, {machine['threads']} threads"
    if seconds is not None:
        run += f", {seconds:.0f} s"
    if record["commit"] is not None:
        run += f", commit {record['commit'][:7]}"
    return f"{flags}: {run}\n\n{markdown_table(['', 'step 1', 'end'], body)}"


# --- Pages ----------------------------------------------------------------------------------------


def filled(text: str, results: list[tuple[Path, Result]], up: str) -> str:
    """A page's text with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        table = make_table(match[1], results, up)
        return f"<!-- table: {match[1]} -->\n{table}\n<!-- end of table -->"

    return BLOCK.sub(block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a table differs"
    )
    check = parser.parse_args().check
    results = load_results()
    differing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text, results, "" if page.parent == ROOT else "../")
        if new != text:
            differing.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new, encoding="utf-8")
    if differing and check:
        print(f"not as the results have it: {', '.join(differing)}; run `make tables`")
        return 1
    print(f"wrote {', '.join(differing)}" if differing else "every table is as the results have it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
