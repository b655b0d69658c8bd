"""Attacks find photographs themselves, but not averages of strangers."""

import numpy as np
import pytest

from common.models.encoder import Encoder
from common.models.stylegan import Critic, Generator
from server.evaluate import attack_findings, attack_spaces, attacks, siamese
from server.evaluate.findings import NOT_EVALUATED


def photographs(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Smooth coloured blobs, different for each person."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    images = np.zeros((count, size, size, 3))
    for image in images:
        for _ in range(8):
            cy, cx, width = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.2)
            image += (
                rng.uniform(0, 120, 3)
                * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / width**2)[..., None]
            )
    return images.clip(0, 255).astype(np.uint8)


MEMBERS, OTHERS, STRANGERS = photographs(60, 0), photographs(40, 1), photographs(60, 2)
LABELS, THEIRS = np.arange(60) // 30, np.arange(40) // 20
WHO = attacks.people((MEMBERS, LABELS, LABELS), (OTHERS, THEIRS, THEIRS))


def averages(images: np.ndarray, k: int) -> np.ndarray:
    return images.reshape(-1, k, *images.shape[1:]).mean(1).astype(np.uint8)


RELEASES = {
    "the photographs themselves": (MEMBERS, LABELS, 0.999, 1.01),
    "averages of two": (averages(MEMBERS, 2), LABELS[::2], 0.7, 1.01),
    "photographs of strangers": (STRANGERS, LABELS, 0.0, 0.67),
    "averages of ten strangers": (averages(STRANGERS, 10), LABELS[::10], 0.0, 0.67),
}


@pytest.mark.parametrize("name", RELEASES)
def test_membership_is_inferred_where_it_leaks_and_guessed_where_it_does_not(name: str) -> None:
    released, labels, low, high = RELEASES[name]
    found = attacks.Battery(WHO).membership(released, labels)
    assert found is not None
    assert low <= found.worst.auc < high
    assert found.worst.auc > found.chance if low else found.worst.auc < found.chance + 0.03


def test_networks_add_spaces_and_copies_are_found_in_each() -> None:
    networks = attack_spaces.Networks(
        Generator(32, 3, 8, 16), Critic(32, 3, 8), Encoder(32, 3, 8, 16)
    )
    found = attacks.Battery(WHO, networks).membership(MEMBERS, LABELS)
    assert found is not None
    near = {one.attacker: one.auc for one in found.attackers if one.attacker.startswith("nearest")}
    assert {name.split(", ")[1] for name in near} == {
        "pixels", "contrast", "texture", "critic", "codes", "whitened codes"
    }  # fmt: skip
    assert min(near.values()) > 0.99


def test_samples_of_a_generator_that_saw_nobody_find_nobody() -> None:
    networks = attack_spaces.Networks(Generator(32, 3, 8, 16))
    control = attacks.Battery(WHO, networks).control(LABELS)
    assert control is not None and control.worst.auc < control.chance + 0.05
    assert attacks.Battery(WHO).control(LABELS) is None


def test_people_of_another_kind_are_told_apart_by_the_control_too() -> None:
    greyer = attacks.people((MEMBERS // 4 + 96, LABELS, LABELS), (OTHERS, THEIRS, THEIRS))
    control = attacks.Battery(greyer, attack_spaces.Networks(Generator(32, 3, 8, 16))).control(
        LABELS
    )
    assert control is not None and control.worst.auc > 0.8


def test_only_releases_of_the_own_label_speak_of_a_person() -> None:
    # every photograph under the other label
    found = attacks.Battery(WHO).membership(MEMBERS, 1 - LABELS)
    assert found is not None and found.worst.auc < found.chance + 0.03


def test_a_label_without_a_release_gives_nobody_away() -> None:
    released = MEMBERS[LABELS == 0]
    found = attacks.Battery(WHO).membership(released, LABELS[LABELS == 0])
    assert found is not None
    near = next(one for one in found.attackers if one.attacker == "nearest release, pixels")
    assert near.auc == pytest.approx(0.75, abs=0.01)  # half of them are found, the others are ties


def test_links_point_at_those_who_took_part() -> None:
    for released, labels, low, high in (
        (averages(MEMBERS, 2), LABELS[::2], 0.7, 1),
        (STRANGERS, LABELS, 0.4, 0.72),
    ):
        found = attacks.linkage(released, labels, WHO, count=2)
        assert found is not None and low <= found.precision <= high
        assert found.chance == pytest.approx(0.6)


def test_findings_carry_the_worst_attacker_and_what_chance_gives() -> None:
    labels = LABELS[::2]
    inference = attacks.Battery(WHO).membership(averages(MEMBERS, 2), labels)
    links = attacks.linkage(averages(MEMBERS, 2), labels, WHO)
    found = {
        f.name: f for f in attack_findings.findings(inference, inference, links, "60 public people")
    }
    assert inference is not None
    assert found[attack_findings.MEMBERSHIP].value == round(inference.worst.auc, 4)
    assert inference.worst.attacker in found[attack_findings.MEMBERSHIP].evidence
    assert found[attack_findings.MEMBERSHIP].interval is not None
    assert found[attack_findings.MEMBERSHIP_CHANCE].value == round(inference.chance, 4)
    assert found[attack_findings.MEMBERSHIP_CONTROL].value == round(inference.worst.auc, 4)
    silent = attack_findings.findings(None, None, None, "")
    assert {f.status for f in silent} == {NOT_EVALUATED} and {f.name for f in silent} == set(found)


# --- re-identification ------------------------------------------------------------------------


def exposures(persons: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Several exposures of each person: brightness, noise and a small move differ."""
    rng = np.random.default_rng(seed)
    base, who = photographs(persons, seed), np.repeat(np.arange(persons), each)
    images = [
        np.roll(base[p] * rng.uniform(0.7, 1.1), rng.integers(-1, 2), 1)
        + rng.normal(0, 12, base[p].shape)
        for p in who
    ]
    return np.stack(images).clip(0, 255).astype(np.uint8), who


SMALL = siamese.Recipe(width=8, steps=60, persons=20)


def test_a_network_trained_on_others_finds_people_and_copies_but_not_averages() -> None:
    network = siamese.train(*exposures(40, 2, 5), seed=0, recipe=SMALL)
    images, who = exposures(30, 2, 6)
    control = siamese.recognition(network, images, who)
    assert control is not None and control.precision > 0.8 and control.auc > 0.95
    assert control.chance == pytest.approx(1 / 59)  # nobody is found by the very same image
    queries, released = images[::2], images[1::2]
    for gallery, own, low, high in (
        (released, np.eye(30, dtype=bool), 0.8, 1.0),
        (averages(photographs(60, 7), 2), np.eye(30, dtype=bool), 0.0, 0.2),
    ):
        apart = siamese.attack_scores.distances(network.embed(queries), network.embed(gallery))
        found = siamese.reidentify(apart, own)
        assert found is not None and low <= found.precision <= high
        assert found.chance == pytest.approx(1 / 30)


def test_a_query_without_an_own_release_does_not_count() -> None:
    apart = np.array([[0.0, 1.0], [0.0, 1.0], [np.inf, 1.0]])
    own = np.array([[True, False], [False, False], [False, True]])
    found = siamese.reidentify(apart, own)
    assert found is not None and found.precision == 1.0 and found.auc == 1.0 and found.chance == 0.5
    assert siamese.reidentify(apart[1:2], own[1:2]) is None


def test_a_network_needs_people_with_two_images() -> None:
    with pytest.raises(Exception, match="3 persons have two images"):
        siamese.train(*exposures(3, 2, 0), seed=0, recipe=SMALL)
