"""What an attacker makes of the released networks alone."""

from pathlib import Path

import numpy as np

from common.study.plan import load_study
from server.demo.rehearsal import DEPLOY
from server.evaluate import attack_spaces, attacks
from server.evaluate.attacker import load_networks


def test_a_flows_own_samples_say_how_far_members_differ_in_kind(tmp_path: Path) -> None:
    chest = load_study(DEPLOY / "studies" / "chest-demo.yaml")
    checkpoints = DEPLOY / "checkpoints" / "chest-32"
    known = load_networks(chest, {}, checkpoints)
    assert known.flow is not None and known.temperature == 0.7
    assert load_networks(chest, {}, tmp_path) == attack_spaces.Networks(iterations=1)
    random = np.random.default_rng(0)

    def crowd(bright: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        images = random.integers(bright, bright + 60, (40, 32, 32, 1), dtype=np.uint8)
        return images, np.zeros(40, np.int64), np.zeros(40, np.int64)

    # members alone are of the samples' brightness: different in kind
    who = attacks.people(crowd(90), crowd(0))
    found = attacks.Battery(who, known).control(np.zeros(20, np.int64))
    assert found is not None and found.worst.auc > 0.9
    assert attacks.Battery(who).control(np.zeros(20, np.int64)) is None
