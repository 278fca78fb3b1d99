"""Some of each kind of fault, within a minute; ``make attack`` injects them by the thousand."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from injections import KINDS, LOST, REFUSED, SURVIVED, Ground

#: How many of each: one or two seconds of one processor's time, or one trial.
TRIALS = {
    "damaged_checkpoint": 400,
    "damaged_newest": 30,
    "damaged_data": 400,
    "hostile_pickle": 40,
    "hostile_values": 15,
    "hostile_header": 300,
    "hostile_text": 400,
    "failing_write": 4,
    "short_write": 20,
    "op_arguments": 10,
    "interrupted": 2,
    "ranks": 2,
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def test_every_kind_is_tried() -> None:
    assert TRIALS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_and_nothing_wrong(kind: str, ground: Ground) -> None:
    ends = Counter()
    for number in range(TRIALS[kind]):
        seed = random.randrange(2**32)  # of the suite's seed
        ended = KINDS[kind](random.Random(seed), ground)
        assert ended in (SURVIVED, REFUSED), f"{kind} number {number}, seed {seed}: {ended}"
        ends[ended] += 1
    assert ends[LOST] == 0
    # Bytes that changed are found; what can go on does.
    assert ends[REFUSED if kind.startswith(("damaged_ch", "hostile", "ranks")) else SURVIVED] > 0


def test_a_loss_would_be_seen(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its digest a checkpoint with a flipped bit loads; the harness must say so."""
    monkeypatch.setattr("fastgan.training.checkpoint._check_seal", lambda *_: None)
    monkeypatch.setattr("zipfile.ZipExtFile._update_crc", lambda *_: None)
    ends = {KINDS["damaged_checkpoint"](random.Random(seed), ground) for seed in range(60)}
    assert LOST in ends
