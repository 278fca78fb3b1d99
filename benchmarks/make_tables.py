"""Writes the tables of the README and the docs from the committed results, and from nothing else.

    python benchmarks/make_tables.py           # make tables
    python benchmarks/make_tables.py --check   # exit code 1 if a table isn't what it would write

A table stands between two marks, `<!-- table: NAME -->` and `<!-- end of table -->`, in README.md
or a page of docs/. What is between them is replaced. The names:

    headline    the README's: a whole training iteration, and how many goals are reached
    summary     docs/performance.md's: every goal on this project's machines, those not measured too
    goals-cpu, goals-cuda    docs/measurements.md's: the same in full, for one kind of device
    cases-cpu-ops, ...       every case of a suite, rows where a peer is faster included
    static-sm_80, ...        what the compiler made of each kernel
    optimizers  docs/optimisers.md's, from optimizers-*.json
    faults      docs/reliability.md's, from faults.json, which `make attack` writes
    health      the same page's, of its training runs
    penalty     docs/gradient-penalty.md's: the goals of the penalty, by batch

The README's figures of the demo, between marks of their own, are record_demo.py's.

Results are benchmarks/results/bench-*.json (schema: fastgan/bench/schema.py) and, for what they
lack, optimizers-*.json (fields: record_optimizers.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import record_demo

from fastgan.bench.goals import GOALS, Goal, Verdict, judge
from fastgan.bench.schema import Result, Row, read_result
from fastgan.bench.tables import case_table, goal_cells, goal_table, markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
DEMO = ("<!-- demo figures: begin -->", "<!-- demo figures: end -->")
BLOCK = re.compile(r"<!-- table: ([a-z0-9_-]+) -->\n(.*?)<!-- end of table -->", flags=re.S)


# --- Results --------------------------------------------------------------------------------------


def load_results(folder: Path = RESULTS) -> list[tuple[Path, Result]]:
    """All of them, each with its file."""
    readers: dict[str, Callable[[Path], Result]] = {
        "bench-*.json": read_result,
        "optimizers-*.json": read_optimizers,
    }
    return [
        (path, read(path))
        for pattern, read in readers.items()
        for path in sorted(folder.glob(pattern))
    ]


def read_optimizers(path: Path) -> Result:
    """What record_optimizers.py wrote, as rows of the schema."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for row in found["rows"]:
        shape = row["shapes"] + ", cold" * (row["cold"] and row["weights"] < 10_000_000)
        case = {"suite": "ops", "op": row["work"], "shape": shape, "dtype": "float32", "batch": 0}
        medians = row["median_us"]
        seconds = {name: value * 1e-6 for name, value in medians.items()}
        turns = row.get("times_faster_by_turn")
        turns = None if turns is None else (turns["median"], *turns["quartiles"])
        rows += _times(case, seconds, row["best_peer"], turns)
        rows.append(_ours(case, "percent_of_floor", row["percent_of_copy"], detail="bandwidth"))
    return _result(found, path, rows)


def _ours(case: dict, metric: str, value: float, spread=None, detail: str = "") -> Row:
    return Row(
        **case,
        provider="fastgan",
        mode="launched",
        metric=metric,
        value=value,
        spread=spread,
        detail=detail,
    )


def _times(
    case: dict,
    seconds: dict[str, float],
    best: str = "",
    turns: tuple[float, float, float] | None = None,
) -> list[Row]:
    """Of every contender; these files keep the ratio within turns of the best peer alone."""
    rows = [_ours(case, "seconds", seconds["fastgan"])]
    for name, value in seconds.items():
        if name == "fastgan":
            continue
        rows.append(Row(**case, provider=name, mode="launched", metric="seconds", value=value))
        ratio, spread = round(value / seconds["fastgan"], 3), None
        if name == best and turns is not None:
            ratio, spread = turns[0], turns[1:]
        rows.append(_ours(case, "times_faster", ratio, spread, name))
    return rows


def _result(found: dict, path: Path, rows: list[Row]) -> Result:
    device = "cuda" if path.stem.endswith("cuda") else "cpu"
    machine = {**found["machine"], "device": device}
    if device == "cuda":
        machine["gpu"] = machine["processor"]
    return Result(
        time=found["time"],
        commit=found["commit"],
        machine=machine,
        versions=found["versions"],
        settings={},
        floors={},
        rows=tuple(rows),
    )


# --- Tables ---------------------------------------------------------------------------------------


def make_table(name: str, results: list[tuple[Path, Result]], up: str = "") -> str:
    """The table of that name; ``up`` leads from its page to the repository's root.

    Raises:
        ValueError: there is no such table.
    """
    kind, _, rest = name.partition("-")
    if name == "headline":
        return headline(results, up)
    if name == "summary":
        return summary(results, up)
    if kind == "goals" and rest in ("cpu", "cuda"):
        goals = [goal for goal in GOALS if goal.device == rest]
        verdicts = judge([result for _, result in results], goals)
        return sources(verdicts, results, up) + "\n\n" + goal_table(verdicts)
    if kind == "cases":
        device, _, suite = rest.partition("-")
        parts = [
            f"{where(result)}, [`{path.name}`]({up}benchmarks/results/{path.name}):\n\n"
            + case_table(result, suite)
            for path, result in results
            if result.machine["device"] == device
            and path.name.startswith("bench-")
            and result.find(suite=suite)
        ]
        return "\n\n".join(parts) or f"`{device}`, suite {suite}: not measured."
    if name == "optimizers":
        return "\n\n".join(optimizers(device) for device in ("cpu", "cuda"))
    if name == "faults":
        return faults()
    if name == "health":
        return health()
    if name == "penalty":
        return penalty(results, up)
    if kind == "static":
        from static_report import table

        return table(rest)
    raise ValueError(f"there is no table {name!r}")


def optimizers(device: str) -> str:
    """Every case of optimizers-<device>.json, each against the best of torch's."""
    path = RESULTS / f"optimizers-{device}.json"
    if not path.exists():
        return f"`{device}`: not measured."
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, versions = result["machine"], result["versions"]
    body = []
    for row in result["rows"]:
        median, best = row["median_us"], row["best_peer"]
        shapes = row["shapes"] + ", cold" * (row["cold"] and row["weights"] < 10_000_000)
        body.append(
            (
                *(row["work"], shapes, f"{median['fastgan'] / 1000:.2f} ms"),
                *(f"{median[best] / 1000:.2f} ms", best, f"{row['times_faster']:.2f}"),
                f"{row['percent_of_copy']}%",
            )
        )
    head = ("work", "weights", "fastgan", "best of torch's", "which", "times faster")
    return (
        f"{machine['processor']}, {machine['threads']} threads, torch {versions['torch']}, "
        f"{versions['cpu_instruction_set']}; {result['time'][:10]}, "
        f"[`{path.name}`](../benchmarks/results/{path.name}):\n\n"
        + markdown_table((*head, "of copy bandwidth"), body)
    )


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


def where(result: Result) -> str:
    threads = result.machine.get("threads")
    cpu = f", {threads} threads" if result.machine["device"] == "cpu" else ""
    return f"{result.device_name}{cpu}, torch {result.versions['torch']}, {result.time[:10]}"


def sources(verdicts: list[Verdict], results: list[tuple[Path, Result]], up: str) -> str:
    """Where the numbers are from."""
    used = [verdict.result for verdict in verdicts if verdict.result is not None]
    lines = [
        f"{where(result)}: [`{path.name}`]({up}benchmarks/results/{path.name})"
        for path, result in results
        if any(result is each for each in used)
    ]
    return "; ".join(lines) + "." if lines else "Not measured."


def headline(results: list[tuple[Path, Result]], up: str) -> str:
    """A whole training iteration on a CPU, and how many of the goals are reached."""
    verdicts = judge([result for _, result in results], [g for g in GOALS if g.device == "cpu"])
    steps = [
        verdict
        for verdict in verdicts
        if verdict.row is not None
        and verdict.row.suite == "training"
        and verdict.goal.metric == "times_faster"
    ]
    body = [(v.goal.op, v.goal.shape, v.goal.dtype, _range([v])) for v in steps]
    table = markdown_table(["2 CPU cores", "model", "in", "times faster"], body)
    measured = [verdict.words for verdict in verdicts if verdict.row is not None]
    passed, near = (sum(w.startswith(s) for w in measured) for s in ("pass", "within"))
    missed = len(measured) - passed - near
    on_gpus = any(result.machine["device"] == "cuda" for _, result in results)
    gpu = "" if on_gpus else " On GPUs nothing was measured yet."
    return (
        f"{table}\n\n{sources(steps, results, up)}\n\nOf {len(measured)} goals that were measured "
        f"{passed} are reached, {near} within the spread and {missed} missed: "
        f"[all of them]({up}docs/performance.md#results).{gpu}"
    )


def summary(results: list[tuple[Path, Result]], up: str) -> str:
    """Of every op: what was measured, from the hardest case to the easiest, by kind of device."""
    verdicts = judge([result for _, result in results])
    parts = []
    for device, title in (("cpu", "2 CPU cores"), ("cuda", "GPU")):
        cases: dict[tuple[str, ...], list[Verdict]] = {}
        for verdict in verdicts:
            if verdict.goal.device == device and verdict.goal.metric in _NUMBERS:
                cases.setdefault(_group(verdict.goal), []).append(verdict)
        if all(verdict.row is None for each in cases.values() for verdict in each):
            parts.append(
                f"{title}: not measured; [goals]({up}docs/measurements.md#{title.lower()})."
            )
            continue
        body = [(*case, _range(each), _verdict(each)) for case, each in cases.items()]
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
    passed = sum(word == "pass" for word in measured)
    said = "pass" if passed == len(measured) else f"{passed} of {len(measured)} pass"
    if passed < len(measured):
        short = [word for word in measured if word.startswith("falls")]
        worst = max(short, key=lambda word: int(re.findall(r"\d+", word)[0]), default="")
        said += f", {worst.replace('falls', 'the worst falls')}" if worst else ", the rest within"
        said += "" if worst else " the spread"
    missing = len(words) - len(measured)
    return said + (f"; {missing} not measured" if missing else "")


def faults(path: Path = RESULTS / "faults.json") -> str:
    """What `make attack` injected, and how it ended."""
    found = json.loads(path.read_text(encoding="utf-8"))
    ends = ("tries", "survived", "refused", "lost")
    rows = [(kind.replace("_", " "), each["what"], each) for kind, each in found["kinds"].items()]
    body = [(kind, what, *(f"{each[end]:,}" for end in ends)) for kind, what, each in rows]
    sums = [f"{sum(each[end] for *_, each in rows):,}" for end in ends]
    table = markdown_table(["kind", "what must hold", *ends], [*body, ("**all**", "", *sums)])
    return f"{table}\n\n{found['minutes']:g} minutes, seed {found['seed']}, torch {found['torch']}."


def health(path: Path = RESULTS / "faults.json") -> str:
    """What the health monitor said of each training run."""
    body = []
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        said = ", ".join(f"{name} at step {step}" for step, name in run["named"])
        body.append((run["run"], " or ".join(run["has"]) or "nothing", said or "nothing"))
    return markdown_table(["run", "what it has", "what was said"], body)


# --- Pages ----------------------------------------------------------------------------------------


def filled(text: str, results: list[tuple[Path, Result]], up: str) -> str:
    """A page's text with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        table = make_table(match[1], results, up)
        return f"<!-- table: {match[1]} -->\n{table}\n<!-- end of table -->"

    text = BLOCK.sub(block, text)
    if DEMO[0] in text:
        before, rest = text.split(DEMO[0])
        demo = json.loads((RESULTS / "demo-cpu.json").read_text(encoding="utf-8"))
        text = f"{before}{DEMO[0]}\n{record_demo.table(demo)}\n{DEMO[1]}{rest.split(DEMO[1])[1]}"
    return text


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
