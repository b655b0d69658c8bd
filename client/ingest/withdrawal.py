"""Takes persons out of everything that this site computes from now on.

In: patient ids, lists of ids, image files; what the site knows of its persons.
Out: an entry of the persons file and one of the journal; a `Withdrawal` for the site's own screen.
Guarantees:
  - all that was asked is written, or nothing: an unknown id stops the whole request
  - every id that is known to be the same person goes too, now and when it is found later
  - an id finds its person in any spelling (spelling.py)
  - the journal gets the count and digest of the persons file, and neither id nor pseudonym
  - no message repeats an id
Not covered: what has left already.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.ingest.decode import decode_all
from client.ingest.identify import hide_spelling
from client.ingest.persons import is_placeholder, normalise_id, pseudonym
from client.ingest.quarantine import Reason
from client.ingest.refresh import choices_of
from client.ingest.request import Limits, Photograph, Settings
from client.ingest.whose import Names, find_owners
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.head import Heads
from client.state.people import People, PeopleFile, Spelling
from common.errors import ConfigurationError
from common.storage.files import read_capped
from common.study.intake import Intake

LIST_CAP_BYTES = 1 << 20
JOURNAL_KEY = "withdrawal"


@dataclass(frozen=True)
class Asked:
    """One id of a request: where it stands, and the name of its pseudonym; "" for no usable id.

    `spelling`: its keyed forms.
    """

    where: str
    name: str
    spelling: Spelling


@dataclass(frozen=True)
class Withdrawal:
    """What a request came to: persons, their ids, and how many had withdrawn before."""

    persons: int
    ids: int
    before: int
    unknown: int

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"withdrawn: {self.persons} persons ({self.ids} ids); {self.before} had before"
        if self.unknown:
            yield f"{self.unknown} ids that no image has yet: they will not enter"
        yield (
            "no training round, average, export or measurement that begins now uses them, and no "
            "group that held one of them is released again"
        )


def name_ids(ids: Sequence[str], issuer: str, key: bytes) -> list[Asked]:
    """Return the ids of the command line."""
    found = []
    for number, text in enumerate(ids, 1):
        found.append(_ask(f"id {number}", key, issuer, text))
    return found


def read_list(path: Path, issuer: str, key: bytes) -> list[Asked]:
    """Return the ids of a file: UTF-8, one a line; empty lines do not count.

    Raises ConfigurationError for a file that is too large, not UTF-8, or without an id.
    """
    try:
        lines = read_capped(path, LIST_CAP_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: not UTF-8 text", hint="write one patient id a line, in UTF-8"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if normalise_id(line):
            found.append(_ask(f"{path}:{number}", key, issuer, line))
    if not found:
        raise ConfigurationError(f"{path}: holds no patient id", hint="write one patient id a line")
    return found


def _ask(where: str, key: bytes, issuer: str, text: str) -> Asked:
    """An id of a request; its name is "" where it names nobody."""
    if is_placeholder(normalise_id(text)):
        return Asked(where, "", Spelling((), ()))
    return Asked(where, pseudonym(key, issuer, text), hide_spelling(key, issuer, text))


def resolve(
    asked: Sequence[Asked], people: People, *, ahead: bool
) -> tuple[list[Names], list[Names]]:
    """Return the persons that are meant, and the names and forms of ids that no person has yet.

    `ahead`: such names are allowed; so they are while nobody was ingested. Raises
    ConfigurationError (E-PATIENT-UNKNOWN) with every problem at once.
    """
    persons: dict[Names, None] = {}
    unknown: dict[Names, None] = {}
    problems: list[str] = []
    for one in asked:
        found = people.called(one.name, one.spelling)
        if not one.name:
            problems.append(f"{one.where}: empty or a placeholder; it names nobody")
        elif len(found) > 1:
            problems.append(f"{one.where}: {len(found)} persons have this id; name the --issuer")
        elif found:
            persons[found[0]] = None
        elif ahead or not people.names or one.name in people.withdrawn:
            # nor does this id in another spelling enter later
            unknown[one.name, *one.spelling.owns] = None
        else:
            problems.append(f"{one.where}: no image of this site has this id")
    if problems:
        raise ConfigurationError(
            "\n".join(problems),
            problems=problems,
            hint="nothing was changed; correct the id or name its --issuer, or say --ahead for "
            "somebody whose images are not here yet",
            code="E-PATIENT-UNKNOWN",
        )
    return list(persons), list(unknown)


def find_in_files(
    paths: Sequence[Path], intakes: Sequence[Intake], state: State, config: SiteConfig
) -> list[Names]:
    """Return the persons whom image files show.

    `intakes`: the rules under which a file may be read. Raises ConfigurationError
    (E-PATIENT-UNKNOWN) for a file that cannot be read, or that is of nobody whom the site knows.
    """
    found: list[Names] = []
    for path in paths:
        names: set[str] = set()
        reasons: set[str] = set()
        for intake in intakes:
            (outcome,) = decode_all([path], _settings(intake, config), 1)
            if isinstance(outcome, Photograph):
                (owner,) = find_owners([outcome], [path], intake, state, config)
                names.update(owner)
            else:
                reasons.add(_sentence(outcome))
        if not names:
            why = (
                " ".join(sorted(reasons)) or "Neither header, labels file nor pixels name anybody."
            )
            raise ConfigurationError(
                f"{path}: does not say whose it is. {why}",
                hint="nothing was changed; withdraw by the patient's id",
                code="E-PATIENT-UNKNOWN",
            )
        found.append(tuple(sorted(names)))
    return found


def _sentence(reason: Reason) -> str:
    return f"{reason.value}: {reason.sentence}"


def _settings(intake: Intake, config: SiteConfig) -> Settings:
    """A plan's intake rules under this site's limits; whatever an image shows, it is somebody's."""
    limits = Limits(max_file_bytes=config.limits.max_file_mib << 20)
    return Settings(
        intake.size_px,
        intake.channels,
        tuple(intake.dicom_modalities),
        intake.window,
        limits.max_file_bytes,
        limits.max_pixel_bytes,
        limits.decode_memory_bytes,
        limits.decode_timeout_s,
        choices=replace(choices_of(config.data), refuse_silent=False, find_text=False),
    )


def _log_withdrawal(state: State, digest: str) -> None:
    """Note in the log that somebody withdrew, under a key that never leaves."""
    secret = hmac.digest(state.pseudonym_bytes(), b"kohort-withdrawal-key", "sha256")
    commitment = hmac.digest(secret, digest.encode(), "sha256").hex()
    state.log.note("withdrawn", once=True, commitment=commitment)


def withdraw(persons: Sequence[Names], unknown: Sequence[Names], state: State) -> Withdrawal:
    """Write the withdrawals down, then journal that there were some; a second time is no change."""
    book = PeopleFile(state.people)
    known = book.read()
    names = {name for person in persons for name in known.name_person(person)}
    before = sum(known.has_withdrawn(person) for person in persons)
    book.withdraw([*names, *(name for own in unknown for name in own)])
    # neither id nor pseudonym: that something was written, and which state of the file it led to
    record = {"entries": book.count, "digest": book.digest}
    latest = state.journal.latest(JOURNAL_KEY)
    if latest is None or latest.data != record:
        state.journal.append(JOURNAL_KEY, "noted", record)
    _log_withdrawal(state, book.digest)
    # from now on a state without this withdrawal is an old one
    Heads(state).take(f"{JOURNAL_KEY}/{book.digest}")
    distinct = {known.name_person(person) for person in persons}
    return Withdrawal(len(distinct), len(names), before, len(unknown))
