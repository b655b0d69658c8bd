"""Who is one person: joins across ids on invented hospitals whose truth is known.

    python -m benchmarks.one_person [--json [FILE]] [--people 10000]

Each hospital has a scheme of ids of its own. Some of its people stand there under a second id: the
same one in another spelling, another one in the same study, or another one with the same picture.
Their files go through the intake's own rules (client/ingest/identify.py, joins.py) without images;
a picture is its digest. Pairs of ids that the rules join are compared with the truth.

Recall: of the pairs of ids of one person, those that are joined. False: persons who are joined with
another one. Seeded; no clock and no machine has a part in the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks import report
from client.ingest.census import keep_stated
from client.ingest.identify import Identities, Owner
from client.ingest.joins import join_persons
from client.ingest.labels import Labels
from client.ingest.persons import ImageRecord
from client.state.people import People
from common.study.intake import Intake

KEY = bytes(range(32))
PEOPLE = 10_000
SHARE = 0.1  # of the people, for each cause of a second id
CAUSES = ("spelling", "study", "picture")
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LEAST_RECALL = 0.9
MOST_FALSE = 1.0  # in 10,000 people

Id = tuple[str, str]  # issuer and id
Make = Callable[[int, random.Random], Id]
Respell = Callable[[Id, random.Random], Id]


@dataclass(frozen=True)
class Scheme:
    """A hospital's ids: how the n-th person is called, and how another system spells that."""

    name: str
    make: Make
    respell: Respell
    trap: str = ""  # what makes different people look alike here


@dataclass
class Hospital:
    """Records of a hospital, and for each the person behind it."""

    identities: Identities
    records: list[ImageRecord] = field(default_factory=list)
    truth: list[int] = field(default_factory=list)

    def add(self, person: int, named: Id, picture: str, study: str) -> None:
        """Add a file."""
        issuer, identifier = named
        digest = hashlib.sha256(picture.encode()).digest()
        place = len(self.records)
        owner = Owner(identifier, issuer)
        self.records.append(
            self.identities.make_record(place, owner, (f"{place}.dcm",), digest, (study,))
        )
        self.truth.append(person)


@dataclass(frozen=True)
class Found:
    """What the rules made of a hospital: by cause (joined pairs, pairs), and false persons."""

    pairs: dict[str, tuple[int, int]]
    false: int
    people: int
    crowded: int

    @property
    def recall(self) -> float:
        """The share of pairs that are joined."""
        joined, all_pairs = (sum(numbers) for numbers in zip(*self.pairs.values(), strict=True))
        return joined / all_pairs


# --- schemes --------------------------------------------------------------------------------------


def _choose(options: Sequence[str], chance: random.Random) -> str:
    return options[chance.randrange(len(options))]


def _plain_number(n: int, _: random.Random) -> Id:
    return "", str(2_000_000 + 7 * n)


def _other_zeros(named: Id, chance: random.Random) -> Id:
    return named[0], _choose(
        [named[1].zfill(10), f"00{named[1]}", f"{named[1]}.0", f" {named[1]} "], chance
    )


def _structured(n: int, _: random.Random) -> Id:
    return "", f"MRN-{n % 7:02d}-{n:07d}"


def _other_signs(named: Id, chance: random.Random) -> Id:
    text = named[1]
    return named[0], _choose(
        [text.lower(), text.replace("-", " "), text.replace("-", "/"), text.replace("-", "_")],
        chance,
    )


def _letters_and_number(n: int, _: random.Random) -> Id:
    return "", f"{'KLMN'[n % 4]}{'XYZ'[n % 3]}{n:06d}"


def _other_case(named: Id, chance: random.Random) -> Id:
    text = named[1]
    return named[0], _choose(
        [text.lower(), f"{text[:2]}-{text[2:]}", f"{text[:2]} {text[2:].lstrip('0') or '0'}"],
        chance,
    )


def _birth_and_serial(n: int, chance: random.Random) -> Id:
    return "", f"{chance.randrange(1920, 2020)}{n % 12 + 1:02d}{n % 28 + 1:02d}-{n % 10_000:04d}"


def _without_sign(named: Id, chance: random.Random) -> Id:
    return named[0], _choose(
        [named[1].replace("-", ""), named[1].replace("-", "."), named[1].replace("-", " ")], chance
    )


def _site_and_subject(n: int, _: random.Random) -> Id:
    return "", f"{n % 97 + 1}-{n // 97 + 1}"


def _padded(named: Id, chance: random.Random) -> Id:
    site, _, subject = named[1].partition("-")
    padded = f"{site:0>2}-{subject:0>4}"
    # run together, nobody can tell 1-23 from 12-3
    return named[0], _choose(
        [padded, f"{site}/{subject}", f"{site} {subject}", site + subject], chance
    )


def _two_issuers(n: int, _: random.Random) -> Id:
    return ("NORTH", "SOUTH")[n % 2], str(50_000 + n // 2)


def _issuer_inside(named: Id, chance: random.Random) -> Id:
    issuer, identifier = named
    return _choose_id(
        [
            ("", f"{identifier}^^^{issuer}"),
            ("", f"{identifier}-{issuer}"),
            (issuer.lower(), f"0{identifier}"),
        ],
        chance,
    )


def _choose_id(options: Sequence[Id], chance: random.Random) -> Id:
    return options[chance.randrange(len(options))]


def _one_issuer(n: int, _: random.Random) -> Id:
    return "CLINIC", str(700_000 + n)


def _issuer_dropped(named: Id, chance: random.Random) -> Id:
    issuer, identifier = named
    return _choose_id(
        [
            ("", identifier),
            ("", f"{identifier}^^^{issuer}"),
            ("", f"{identifier} ({issuer})"),
            ("", f"0{identifier}"),
        ],
        chance,
    )


def _random_letters(n: int, _: random.Random) -> Id:
    own = random.Random(n)
    return "", "".join(own.choice(ALPHABET + "0123456789") for _ in range(8))


def _upper(named: Id, chance: random.Random) -> Id:
    return named[0], _choose([named[1].upper(), f" {named[1].title()}"], chance)


def _hash(n: int, _: random.Random) -> Id:
    return "", hashlib.sha256(str(n).encode()).hexdigest()[:32]


def _uuid(named: Id, chance: random.Random) -> Id:
    return named[0], named[1].upper()


def _subject_and_initials(n: int, chance: random.Random) -> Id:
    initials = "".join(chance.choice(ALPHABET.upper()) for _ in range(3))
    return "", f"{n + 1:05d}-{initials}"


def _initials_dropped(named: Id, chance: random.Random) -> Id:
    number, _, initials = named[1].partition("-")
    return "", _choose(
        [number, f"{number}{initials}", f"{number.lstrip('0')}-{initials.lower()}"], chance
    )


SCHEMES = (
    Scheme("number", _plain_number, _other_zeros),
    Scheme("MRN-01-0000001", _structured, _other_signs),
    Scheme("letters and number", _letters_and_number, _other_case),
    Scheme("date of birth and serial", _birth_and_serial, _without_sign),
    Scheme("site and subject, 1-23", _site_and_subject, _padded, "1-23 beside 12-3"),
    Scheme("two issuers of the same numbers", _two_issuers, _issuer_inside, "77 of either issuer"),
    Scheme("one issuer, not always named", _one_issuer, _issuer_dropped),
    Scheme("eight random letters and digits", _random_letters, _upper, "zeros anywhere"),
    Scheme("hash of an anonymiser", _hash, _uuid, "zeros anywhere"),
    Scheme("number and initials", _subject_and_initials, _initials_dropped, "01-ABC beside 01-XYZ"),
)


# --- what is beside the ids -----------------------------------------------------------------------


def _uid(chance: random.Random) -> str:
    return f"2.25.{chance.getrandbits(100)}"


def make_hospital(scheme: Scheme, people: int, seed: int, *, one_uid: bool = False) -> Hospital:
    """Return a hospital of `people`; `one_uid`: an anonymiser gave all files one study UID."""
    chance = random.Random(f"{scheme.name} {seed}")
    intake = Intake.model_construct(stratify_laterality=False, labels=("all",))
    hospital = Hospital(Identities(KEY, Labels(("all",), everywhere=True), intake))
    for person in range(people):
        named = scheme.make(person, chance)
        study = "2.25.1" if one_uid else _uid(chance)
        hospital.add(person, named, f"{person} 0", study)
        # a second id, for a share of the people each
        cause = int(chance.random() / SHARE)
        other = scheme.make(people + person, chance)
        if cause == 0:
            spelled = scheme.respell(named, chance)
            hospital.add(person, spelled, f"{person} 1", "2.25.1" if one_uid else _uid(chance))
        elif cause == 1:
            hospital.add(person, other, f"{person} 1", study)
        elif cause == 2:
            hospital.add(person, other, f"{person} 0", "2.25.1" if one_uid else _uid(chance))
    return hospital


def _cause(hospital: Hospital, one: int, other: int) -> str:
    """Why two files of one person carry two ids."""
    first, second = hospital.records[one], hospital.records[other]
    if first.digest == second.digest:
        return "picture"
    if first.studies == second.studies:
        return "study"
    return "spelling"


def judge(hospital: Hospital, *, one_uid: bool = False) -> Found:
    """Return what the intake's rules make of a hospital, against the truth."""
    identities = hospital.identities
    records = keep_stated(hospital.records, identities.stated)
    joined = join_persons(records, [], People(), identities.spellings, identities.dummies)
    tree_of: dict[int, int] = {}
    false = 0
    for tree, person in enumerate(joined.persons):
        behind = {hospital.truth[record.position] for record in person}
        false += len(behind) if len(behind) > 1 else 0
        tree_of |= {record.position: tree for record in person}
    pairs = {cause: [0, 0] for cause in CAUSES}
    for one in range(len(records) - 1):
        other = one + 1
        if hospital.truth[one] == hospital.truth[other]:
            # under one UID, a second id in the study has nothing else to join it
            cause = "study" if one_uid else _cause(hospital, one, other)
            if one_uid and hospital.records[one].digest == hospital.records[other].digest:
                cause = "picture"
            pairs[cause][1] += 1
            pairs[cause][0] += tree_of[one] == tree_of[other]
    counted = {cause: (got, of) for cause, (got, of) in pairs.items()}
    return Found(counted, false, len(set(hospital.truth)), len(joined.crowded))


# --- the run --------------------------------------------------------------------------------------


def table(found: dict[str, Found]) -> report.Table:
    """One row a scheme."""
    rows = []
    for name, one in found.items():
        shares = [f"{got} of {of}" for got, of in one.pairs.values()]
        rows.append((name, f"{one.people:,}", *shares, f"{one.recall:.3f}", str(one.false)))
    columns = ("ids", "people", *CAUSES, "recall", "people joined falsely")
    note = "A column of a cause counts pairs of ids of one person that are joined."
    return report.Table("Joins on invented hospitals", columns, tuple(rows), note)


def _two_systems(n: int, _: random.Random) -> Id:
    return "", str(10_000 + n // 2) if n % 2 else f"{10_000 + n // 2:08d}"


TWO_SYSTEMS = Scheme("", _two_systems, _other_zeros)


def traps(people: int, seed: int) -> report.Table:
    """What the rules make of exports that tell too little."""
    one_uid = judge(make_hospital(SCHEMES[0], people, seed, one_uid=True), one_uid=True)
    two_systems = judge(make_hospital(TWO_SYSTEMS, people, seed))
    rows = [
        ("an anonymiser gave all files one StudyInstanceUID", one_uid),
        (
            "two systems gave the same numbers to different people, with and without zeros",
            two_systems,
        ),
    ]
    cells = []
    for name, found in rows:
        cells.append((name, f"{found.people:,}", str(found.false), str(found.crowded)))
    columns = ("export", "people", "people joined falsely", "studies that are warned of")
    return report.Table("What ids cannot tell", columns, tuple(cells))


def overall(found: dict[str, Found]) -> tuple[float, float]:
    """Recall over all pairs, and people joined falsely in 10,000."""
    joined = sum(got for one in found.values() for got, _ in one.pairs.values())
    pairs = sum(of for one in found.values() for _, of in one.pairs.values())
    people = sum(one.people for one in found.values())
    return joined / pairs, 10_000 * sum(one.false for one in found.values()) / people


def targets(found: dict[str, Found]) -> Iterator[report.Target]:
    """What the issue of counting people asks for."""
    recall, false = overall(found)
    yield report.Target(f"recall at least {LEAST_RECALL}", f"{recall:.3f}", recall >= LEAST_RECALL)
    yield report.Target(
        f"at most {MOST_FALSE:g} person joined falsely in 10,000",
        f"{false:.2f}",
        false <= MOST_FALSE,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge every scheme, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--people", type=int, default=PEOPLE, help="people a hospital")
    parser.add_argument("--seed", type=int, default=14)
    report.add_json(parser)
    options = parser.parse_args(arguments)
    found = {
        scheme.name: judge(make_hospital(scheme, options.people, options.seed))
        for scheme in SCHEMES
    }
    tables = [table(found), traps(options.people, options.seed)]
    recall, false = overall(found)
    figures = {"recall": recall, "false_in_10000": false}
    report.give(options.json, "one_person", tables, figures, list(targets(found)))


if __name__ == "__main__":
    main()
