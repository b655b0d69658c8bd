"""The site's cohorts: built once for each set of intake rules, and anew where a person asks for it.

In: a plan's intake rules, site.yaml, the state folder.
Out: the cohort's folder, an `IngestReport`, what changed, and which files did not enter.
Guarantees:
  - a new cohort appears whole, beside the old one; the newest counts, and the old one then goes
  - an intake that was killed goes on where it was (finished.py)
  - pseudonyms stay, ids that were one person stay one, who withdrew does not enter
  - counts are for the site's own screen
Not covered: groups that lose a member, which never come again (client/synthesize/group.py).
"""

from __future__ import annotations

import hmac
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from client.ingest.archive import Opened, mark_source, open_source, sweep_unpacked
from client.ingest.build import IngestReport, Phases, ingest, show_no_phase, stamp_settings
from client.ingest.census import SiteWord
from client.ingest.changes import FileChanges, compare_files
from client.ingest.cohort import image_marks, people_of, persons_of
from client.ingest.labels import Wording
from client.ingest.listing import Changes, compare_listing, stamp_files
from client.ingest.refused import LIST, Refusals, find_refused
from client.ingest.request import (
    VOLUME_CHILD_BYTES,
    Choices,
    Limits,
    child_bytes,
    count_decoders,
)
from client.ingest.text_detector import is_installed
from client.state.config import Data, SiteConfig
from client.state.folder import State
from client.state.people import FILE as PEOPLE
from client.state.people import People, PeopleFile
from common.errors import ConfigurationError, disk_faults_named
from common.study.intake import Intake

DECISIONS = "persons"  # the journal's key of decisions on who is one person
GONE = ".gone"  # ends the name of a cohort that is being removed
ASIDE = ".aside"


@dataclass(frozen=True)
class Refreshed:
    """What a refresh changed, in persons and `files`; `report` is that of the new cohort.

    `withdrawn`: persons of the old cohort who have withdrawn, whose images are now removed.
    """

    new: int
    gone: int
    withdrawn: int
    changed: int
    same: int
    report: IngestReport
    files: FileChanges | None = None

    def lines(self) -> Iterator[str]:
        """Yield what a person reads, on the site's own screen."""
        if self.files is not None:
            yield self.files.line()
        yield (
            f"persons: {self.new} new, {self.gone} gone, {self.withdrawn} withdrawn, "
            f"{self.changed} with other images, {self.same} as before"
        )
        if self.gone or self.withdrawn:
            yield "a group that lost one of them is never released again"


@dataclass(frozen=True)
class Intakes:
    """The cohorts of one site."""

    state: State
    config: SiteConfig
    phases: Phases = show_no_phase

    def ensure(self, intake: Intake) -> IngestReport | None:
        """Build the cohort of these rules unless it is there; return the report of a new one."""
        folder = self.state.cohort(intake)
        if not folder.is_dir():
            return self._build(intake, folder)
        self._finish_removal(intake)
        learn_persons(folder)
        return None

    def refresh(self, intake: Intake) -> Refreshed | None:
        """Build the cohort of these rules anew; return what changed, or None without an old one.

        Raises what `ingest` raises; the old cohort then stays.
        """
        older = self.state.cohorts(intake)
        if not older:
            return None
        self.ensure(intake)
        target = self.state.next_cohort(intake)
        report = self._build(intake, target)
        found = _compare(older[-1], target, report)
        files = compare_files(older[-1], target, self.state.pseudonym_bytes())
        found = replace(found, files=files)
        self._finish_removal(intake)
        return found

    def _finish_removal(self, intake: Intake) -> None:
        """Remove the cohorts before the newest, also where an earlier removal was cut short.

        Each loses its name first, so that nobody reads one that is half removed.
        """
        for folder in self.state.cohorts(intake)[:-1]:
            with disk_faults_named("cannot remove the old cohort", folder):
                os.rename(folder, folder.with_name(f".{folder.name}{GONE}"))
        for folder in self.state.root.glob(f".cohort-*{GONE}"):
            shutil.rmtree(folder, ignore_errors=True)
        # the cohort came about, and the process ended before it removed what led there
        kept = _aside(self.state.cohort(intake))
        if kept.is_dir():
            shutil.rmtree(kept, ignore_errors=True)

    def sweep(self, intakes: Iterable[Intake]) -> None:
        """Remove what unfinished intakes of other rules than these left, pixels among it.

        Call it only where no intake is at work: the state folder's lock is held.
        """
        wanted = {_aside(self._target(intake)) for intake in intakes}
        for folder in self.state.root.glob(f".cohort-*{ASIDE}"):
            if folder not in wanted:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.state.root.glob(".cohort-*.partial"):
            shutil.rmtree(folder, ignore_errors=True)
        sweep_unpacked(self.state.root)

    def changes(self, intake: Intake) -> Changes | None:
        """Return which files came, went or changed since the cohort was built; None if unknown."""
        key = self.state.pseudonym_bytes()
        limits = self.limits(intake)
        inputs = stamp_settings(self.labels(), self.wording(), self.word(), limits, key)
        stamps = stamp_files(self.marks(intake), key)
        return compare_listing(self.state.cohort(intake), stamps, inputs)

    def refusals(self, intake: Intake) -> Refusals | None:
        """Return the files that did not enter, of the newest cohort or of an attempt since then.

        None where nothing was ever taken in. For the site alone: they are named by their paths.
        """
        built = self.state.cohort(intake) / LIST
        attempt = _aside(self._target(intake)) / LIST
        for path, whole in ((attempt, False), (built, True)):
            if path.is_file():
                key = self.state.pseudonym_bytes()
                return find_refused(path, self.marks(intake), key, built=whole)
        return None

    def _target(self, intake: Intake) -> Path:
        """The folder of the cohort of these rules that would be built next."""
        if self.state.cohort(intake).is_dir():
            return self.state.next_cohort(intake)
        return self.state.cohort(intake)

    def marks(self, intake: Intake) -> dict[str, str]:
        """Return what tells whether a file of the data folder changed, by name."""
        source = Path(self.config.data.folder)
        limits, key = self.limits(intake), self.state.pseudonym_bytes()
        return mark_source(source, self._unused(), limits, skip=self.labels(), key=key)

    def open_files(self, intake: Intake) -> AbstractContextManager[Opened]:
        """Return the files of the data folder, while they are read."""
        source = Path(self.config.data.folder)
        limits, key = self.limits(intake), self.state.pseudonym_bytes()
        return open_source(source, self._unused(), limits, skip=self.labels(), key=key)

    def _unused(self) -> Path:
        """A folder that is not there: nothing is built."""
        return self.state.root / ".none"

    def _build(self, intake: Intake, folder: Path) -> IngestReport:
        report = ingest(
            Path(self.config.data.folder),
            intake,
            self.state.pseudonym_bytes(),
            folder,
            labels_csv=self.labels(),
            wording=self.wording(),
            limits=self.limits(intake),
            people=PeopleFile(self.state.people),
            aside=_aside(folder),
            word=self.word(),
            phases=self.phases,
        )
        note_decisions(self.state)
        return report

    def word(self) -> SiteWord:
        """Return what site.yaml says of who is one person."""
        data = self.config.data
        path = None if data.persons_csv is None else Path(data.persons_csv)
        return SiteWord(path, data.accept, data.same_eye)

    def labels(self) -> Path | None:
        """Return the labels file of site.yaml; None where it names none."""
        if self.config.data.labels_csv is None:
            return None
        return Path(self.config.data.labels_csv)

    def wording(self) -> Wording:
        """Return the words that the labels file has for ours."""
        return Wording(self.config.data.columns, self.config.data.values)

    def limits(self, intake: Intake) -> Limits:
        """Return what this machine gives to a cohort of these rules."""
        choices = choices_of(self.config.data)
        memory_bytes = VOLUME_CHILD_BYTES if intake.volumes else child_bytes(choices)
        return Limits(
            max_file_bytes=self.config.limits.max_file_mib << 20,
            workers=count_decoders(self.config.compute.decoders, memory_bytes),
            choices=choices,
        )


def note_decisions(state: State) -> None:
    """Journal that persons.csv decided anew on who is one person, and note it in the log.

    Neither id nor pseudonym: that there were decisions, and which state of the file they led to.
    """
    book = PeopleFile(state.people)
    count = book.decisions
    latest = state.journal.latest(DECISIONS)
    if not count or (latest is not None and latest.data["decisions"] == count):
        return
    digest = book.digest
    secret = hmac.digest(state.pseudonym_bytes(), b"kohort-persons-key", "sha256")
    commitment = hmac.digest(secret, digest.encode(), "sha256").hex()
    state.log.note("persons-decided", once=True, commitment=commitment)
    state.journal.append(DECISIONS, "decided", {"decisions": count, "digest": digest})


def _aside(folder: Path) -> Path:
    """The hidden folder of what an intake keeps that has not built the cohort in `folder` yet."""
    return folder.with_name(f".{folder.name}{ASIDE}")


def choices_of(data: Data) -> Choices:
    """Return what site.yaml decides about the site's own files."""
    return Choices(
        refuse_silent=data.silent_headers == "refuse",
        accept_derived=data.derived == "accept",
        find_text=_find_text(data),
    )


def _find_text(data: Data) -> bool:
    """Whether text is looked for. Raises ConfigurationError where it must be and cannot."""
    if data.text_detector == "on" and not is_installed():
        raise ConfigurationError(
            "data.text_detector is on, and rapidocr-onnxruntime is not installed",
            hint="install kohort-app[site], or set data.text_detector: auto and look at the files",
            code="E-TEXT-DETECTOR",
        )
    return data.text_detector != "off" and is_installed()


def learn_persons(folder: Path) -> None:
    """Keep what a cohort knows of persons: it may be older than the site's persons file."""
    persons: dict[int, list[str]] = {}
    for name, person in persons_of(folder).items():
        persons.setdefault(person, []).append(name)
    PeopleFile(folder.parent / PEOPLE).state(persons.values(), {})


def _compare(old: Path, new: Path, report: IngestReport) -> Refreshed:
    """Compare two cohorts person by person."""
    people = people_of(new)
    before = _images_by_person(old, people)
    after = _images_by_person(new, people)
    withdrawn = {person for person in before if people.has_withdrawn(person)}
    both = before.keys() & after.keys()
    changed = sum(before[person] != after[person] for person in both)
    return Refreshed(
        new=len(after.keys() - both),
        gone=len(before.keys() - both - withdrawn),
        withdrawn=len(withdrawn),
        changed=changed,
        same=len(both) - changed,
        report=report,
    )


def _images_by_person(folder: Path, people: People) -> dict[tuple[str, ...], set[str]]:
    """Digest, label and side of every image, by all names of its person."""
    found: dict[tuple[str, ...], set[str]] = {}
    for name, mark in image_marks(folder):
        found.setdefault(people.name_person([name]), set()).add(mark)
    return found
