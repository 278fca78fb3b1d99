"""Some of the runs of ``health.py``; ``make attack`` trains all."""

from __future__ import annotations

from health import HEALTHY, SICK, trained


def test_sick_runs_are_named_and_healthy_ones_hear_nothing() -> None:
    assert (len(HEALTHY), len(SICK)) == (20, 30)
    assert len({run.name for run in (*HEALTHY, *SICK)}) == 50
    quick = ("a weight becomes NaN", "images become NaN", "constant images", "an image of NaN")
    for run in (HEALTHY[0], *(run for run in SICK if run.name in quick)):
        if not run.sick or "NaN" not in run.name:
            run = type(run)(run.name, run.sick, {**run.settings, "steps": 30}, run.data, run.sicken)
        heard = trained(run)
        assert heard.right, (run.name, heard.said)
