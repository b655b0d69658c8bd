"""The figures of one way of averaging: distances, utility, attacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.average_makers import ANCHORS, Released, load_or_average
from benchmarks.average_prepared import PreparedPart
from client.synthesize.coarse import add_residual
from client.synthesize.invert import reconstruct
from client.synthesize.looks import look_from, show_in
from common.arrays import Flags, Images, Labels
from common.measure import attack_scores, attacks, classifier
from common.measure.scores import score_predictions
from common.models.images import to_uint8
from common.models.look import field_of
from common.storage.files import atomic_write
from server.evaluate import distances, siamese
from server.evaluate.attack_spaces import spaces
from server.evaluate.attacks import People


def load_or_make(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """JSON from a file, made where it is missing."""
    if not file.is_file():
        atomic_write(file, json.dumps(make()).encode())
    found: dict[str, Any] = json.loads(file.read_text(), parse_constant=lambda _: None)
    return found


def figures(ready: PreparedPart, row: str, k: int, seeds: int) -> dict[str, Any]:
    """Everything about one row at one k."""
    file = ready.work / f"figures-{row.replace('/', '-').replace(' ', '')}-{k}-{seeds}.json"
    return load_or_make(file, lambda: measure_row(ready, row, k, seeds))


def measure_row(ready: PreparedPart, row: str, k: int, seeds: int) -> dict[str, Any]:
    """Distances, utility, attacks."""
    released = load_or_average(ready, row, k)
    seen = spaces(released.images, ready.networks)
    labelled = row != ANCHORS
    battery = ready.battery if labelled else ready.blind
    inference = battery.membership(released.images, released.labels, seen)
    worth = None
    if labelled:
        training = (released.images, released.labels, released.group_of)
        worth = utility(ready, [training] * seeds)
    people = ready.people if labelled else ready.blind.who
    return {
        "row": row,
        "k": k,
        "images": len(released.images),
        "groups": len(released.members),
        "distances": fidelity(ready, released.images),
        "utility": worth,
        "membership": inference
        and {
            "worst": asdict(inference.worst),
            "chance": inference.chance,
            "all": {one.attacker: round(one.auc, 4) for one in inference.attackers},
        },
        "linkage": linkage(people, ready.numbers, ready.battery.targets, released, seen, k),
        "reidentified": reidentify(ready, released),
    }


def fidelity(ready: PreparedPart, images: Images) -> dict[str, Any]:
    """Kernel distance, and Fréchet distance of means and variances, to the held-out people on
    pretrained features, each with its 95 % interval; None for fewer than two images.
    """
    if len(images) < 2:
        return {"kernel": None, "frechet": None}
    ours = ready.features(images)
    kernel = distances.estimate_kernel(ours, ready.heldout_features)
    frechet = distances.estimate_frechet(ours, ready.heldout_features, variances_alone=True)
    return {
        "kernel": kernel.value,
        "kernel_95": kernel.interval,
        "frechet": frechet.value,
        "frechet_95": frechet.interval,
    }


def utility(
    ready: PreparedPart, training: Sequence[tuple[Images, Labels, Labels]]
) -> dict[str, Any] | None:
    """Mean over seeds, each with its own training set, of a classifier's figures on the held-out
    people; None for a single class.
    """
    test = ready.part.heldout
    classes = len(ready.part.classes)
    if classes < 2:
        return None
    recipe = classifier.Recipe(flip=ready.part.flip)
    found = []
    for seed, (images, labels, group_of) in enumerate(training):
        model = classifier.fit(images, labels, classes, seed=seed, group_of=group_of, recipe=recipe)
        found.append(score_predictions(model.predict(test.images), test.labels, classes))
    kappas = np.array([one.kappa for one in found])
    spread = float("nan")
    if len(kappas) > 1:
        spread = 1.96 * float(kappas.std(ddof=1)) / len(kappas) ** 0.5
    return {
        "kappa": float(kappas.mean()),
        "kappa_95": spread,
        "accuracy": float(np.mean([one.accuracy for one in found])),
        "macro_f1": float(np.mean([one.macro_f1 for one in found])),
        "recall": np.mean([one.recall for one in found], axis=0).round(4).tolist(),
    }


def linkage(
    people: People,
    numbers: Labels,
    targets: Mapping[str, NDArray[np.float64]],
    released: Released,
    seen: Mapping[str, NDArray[np.float64]],
    k: int,
) -> dict[str, float | str] | None:
    """Precision of the k candidates nearest to a release, in the space where it is worst;
    candidates are all of its label. `numbers`: by member, the number among `people`, or -1.
    """
    possible = released.labels[:, None] == people.labels[None]
    own = np.zeros(possible.shape, bool)
    for r, g in enumerate(released.group_of):
        own[r] = np.isin(people.person_of, numbers[list(released.members[g])])
    worst: dict[str, float | str] | None = None
    for name, ours in seen.items():
        apart = np.where(possible, attack_scores.distances(ours, targets[name]), np.inf)
        found = attacks.links(apart, own, k)
        if found is not None and (worst is None or found.precision > float(worst["precision"])):
            worst = {"precision": found.precision, "chance": found.chance, "space": name}
    return worst


def reidentify(ready: PreparedPart, released: Released) -> dict[str, Any] | None:
    """P@1 from a member's other image to the releases of the label, by the better attacker."""
    queries = ready.part.queries
    own = np.zeros((len(queries.images), len(released.images)), bool)
    for query, person in enumerate(queries.person_of):
        own[query] = [person in released.members[group] for group in released.group_of]
    return find_persons(ready, released.images, released.labels, own)


def recognise(ready: PreparedPart) -> dict[str, Any] | None:
    """The same among the members' own images: how attackers do where nothing is averaged."""
    members = ready.part.members
    own = ready.part.queries.person_of[:, None] == members.person_of[None]
    return find_persons(ready, members.images, members.labels, own)


def find_persons(
    ready: PreparedPart, images: Images, labels: Labels, own: Flags
) -> dict[str, Any] | None:
    """P@1 from the members' other images to `images` of the label, by the attacker of the highest.

    `own` [queries, images]: which are the person's. None where nobody has another image.
    """
    queries = ready.part.queries
    if not len(queries.images):
        return None
    worst: dict[str, Any] | None = None
    for name, see in ready.recognisers.items():
        apart = attack_scores.distances(see(queries.images), see(images))
        apart = np.where(queries.labels[:, None] == labels[None], apart, np.inf)
        found = siamese.reidentify(apart, own)
        if found is None or (worst and found.precision <= worst["precision"]):
            continue
        low, high = found.interval
        worst = {"precision": found.precision, "low": low, "high": high}
        worst |= {"chance": found.chance, "auc": found.auc, "attacker": name}
    return worst


def show_inversions(ready: PreparedPart) -> Images:
    """The members as the generator shows their codes, with their coarse residuals."""
    assert ready.networks.generator is not None
    made = reconstruct(ready.seen.codes, ready.networks.generator)
    fields = field_of(made)
    for row, residual in enumerate(torch.from_numpy(ready.seen.coarse[:, :-1])):
        one = slice(row, row + 1)
        made[one] = add_residual(made[one], residual, fields[one])
    own = look_from(ready.seen.looks, made.device)
    return to_uint8(show_in(made, ready.known.look_on(made.device), own, fields))


def real_rows(ready: PreparedPart, seeds: int) -> dict[str, Any]:
    """What all real members give, the distances' floor, and how well attackers find people among
    real images.
    """
    members = ready.part.members
    return {
        "all": utility(ready, [(members.images, members.labels, members.person_of)] * seeds),
        "floor": fidelity(ready, members.images),
        "inverted_floor": fidelity(ready, show_inversions(ready)),
        "recognised": recognise(ready),
    }


def few_rows(ready: PreparedPart, k: int, seeds: int) -> dict[str, Any]:
    """What as many real members give as there are groups of k, and the same members inverted."""
    members = ready.part.members
    accepted = np.flatnonzero(ready.seen.accepted)
    draws = [some(members.labels, accepted, k, seed) for seed in range(seeds)]
    found = {}
    for name, pixels in (("real", members.images), ("inverted", show_inversions(ready))):
        training = []
        for rows in draws:
            training.append((pixels[rows], members.labels[rows], members.person_of[rows]))
        found[f"{name} {k}"] = utility(ready, training)
        found[f"{name} floor {k}"] = mean_fidelity(ready, [images for images, _, _ in training])
    return found


def mean_fidelity(ready: PreparedPart, draws: Sequence[Images]) -> dict[str, Any]:
    """The mean distances over several draws."""
    found = [fidelity(ready, images) for images in draws]
    if any(one["kernel"] is None for one in found):
        return {"kernel": None, "frechet": None}
    return {name: float(np.mean([one[name] for one in found])) for name in ("kernel", "frechet")}


def some(labels: Labels, accepted: Labels, k: int, seed: int) -> Labels:
    """As many images of each label as it has groups of k."""
    rng = np.random.default_rng([seed, k])
    parts = []
    for label in np.unique(labels):
        rows = accepted[labels[accepted] == label]
        parts.append(rng.permutation(rows)[: len(rows) // k])
    return np.concatenate(parts)
