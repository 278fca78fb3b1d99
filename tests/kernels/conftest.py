"""Leaves out the hour of compilations that are for whoever changes tiles: ``-m slow`` runs them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" in str(config.getoption("markexpr")):
        return
    left_out = [
        item
        for item in items
        if item.path.name == "test_compiled.py" and item.get_closest_marker("slow")
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
