"""Says whose an image file is, by all that the site knows: for exports and withdrawals.

In: decoded photographs with their paths, the site's state folder and site.yaml.
Out: for each photograph every name of its person; none where nobody is known.
Guarantees: the rules are those of the intake (joins.py): ids of header and labels file in any
spelling, studies, what was linked before, identical and nearly identical pixels, one exposure in
two windows, crops of one picture, and one eye, also those of the site's cohorts.
Not covered: two different photographs of one person under two ids that nothing links; eyes and
crops of a photograph whose pixels a cohort holds, which its intake compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from client.ingest.archive import is_archive, mark_source
from client.ingest.cohort import Cohort, image_marks
from client.ingest.crops import same_crops, same_crops_among
from client.ingest.exposure import same_exposures, same_exposures_among
from client.ingest.eyes import find_eyes_among, may_show_eyes
from client.ingest.identify import Identities, Owner
from client.ingest.joins import group_by_person
from client.ingest.labels import Labels, Wording, read_labels
from client.ingest.likeness import near_duplicates, near_pairs, reduce_images
from client.ingest.listing import relative_name
from client.ingest.persons import ImageRecord, aliases, keyed_hash
from client.ingest.quarantine import Unusable
from client.ingest.request import Limits, Photograph
from client.ingest.sealed import is_sealed
from client.state.config import SiteConfig
from client.state.folder import State
from client.state.people import People, PeopleFile
from common.study.intake import Intake

Names = tuple[str, ...]


def find_owners(
    photographs: Sequence[Photograph],
    paths: Sequence[Path],
    intake: Intake,
    state: State,
    config: SiteConfig,
) -> list[Names]:
    """Return every name of each photograph's person, sorted; () for a photograph of nobody."""
    if not photographs:
        return []
    known = PeopleFile(state.people).read()
    # the ids that header and labels file give
    identities = Identities(
        state.pseudonym_bytes(), read_site_labels(config, state.pseudonym_bytes()), intake
    )
    records = []
    for position, (photograph, path) in enumerate(zip(photographs, paths, strict=True)):
        records.append(_record(identities, position, photograph, path, Path(config.data.folder)))
    # an id without its issuer counts where some file states it in that form
    stated = identities.stated | known.names | known.withdrawn
    # the persons of the cohorts whose pixels these are
    seen = _names_by_pixels(state)
    near = _names_by_likeness(photographs, state.cohort(intake))
    unseen = [one.position for one in records if one.digest not in seen]
    looks = _names_by_looks(photographs, unseen, intake, state.cohort(intake), config)
    for position, record in enumerate(records):
        names = {name for name in record.pseudonyms if name in stated}
        names |= {name for name in looks.get(position, set()) if not known.are_apart(names, [name])}
        names |= seen.get(record.digest, set()) | near.get(position, set())
        names |= _withdrawn_spellings(names, identities, known)
        records[position] = replace(record, pseudonyms=tuple(sorted(names)))
    # who is one person, in the cohorts and here
    pixels = np.stack([photograph.pixels for photograph in photographs])
    owners: dict[int, Names] = {}
    fields = reduce_images(pixels)
    crops_here = same_crops(fields, np.arange(len(fields)))
    near_here = chain(near_duplicates(pixels), same_exposures(fields), crops_here)
    for person in group_by_person(records, near_here, known, identities.spellings):
        owners |= dict.fromkeys((record.position for record in person), aliases(person, known))
    return [owners[position] for position in range(len(records))]


def _record(
    identities: Identities, position: int, photograph: Photograph, path: Path, data: Path
) -> ImageRecord:
    """The record of a photograph; one of nobody has no names."""
    names = []
    if path.resolve().is_relative_to(data.resolve()):
        names.append(relative_name(path.resolve(), data.resolve()))
    owner = Owner(photograph.patient_id, photograph.issuer, photograph.laterality)
    try:
        studies = (photograph.study,)
        return identities.make_record(position, owner, names, photograph.digest, studies)
    except Unusable as nobody:
        digest = keyed_hash(identities.key, "pixels", photograph.digest.hex())
        return ImageRecord(position, (), -1, 0, digest, nobody.reason)


def read_site_labels(config: SiteConfig, key: bytes) -> Labels:
    """Return the rows of the site's labels file, whatever labels they give."""
    data = Path(config.data.folder)
    if config.data.labels_csv is None or not data.exists():
        return Labels(())
    if is_archive(data) or is_sealed(data):
        unused = data.with_name(".none")
        files = list(mark_source(data, unused, Limits(), skip=None, key=key))
    else:
        files = [relative_name(path, data) for path in sorted(data.rglob("*"))]
    path = Path(config.data.labels_csv)
    wording = Wording(config.data.columns, config.data.values)
    max_bytes = Limits().max_labels_bytes
    return read_labels(path, (), files, max_bytes, masks=True, wording=wording)


def _withdrawn_spellings(names: set[str], identities: Identities, known: People) -> set[str]:
    """The forms of these ids under which somebody withdrew before having an image here."""
    found: set[str] = set()
    for name in names & identities.spellings.keys():
        spelling = identities.spellings[name]
        found |= known.withdrawn & {*spelling.owns, *spelling.claims}
    return found


def _names_by_pixels(state: State) -> Mapping[str, set[str]]:
    """The patients of all cohorts of the site by the keyed digest of their images."""
    found: dict[str, set[str]] = {}
    for folder in sorted(state.root.glob("cohort-*")):
        for name, mark in image_marks(folder):
            found.setdefault(mark.partition(" ")[0], set()).add(name)
    return found


def _names_by_likeness(photographs: Sequence[Photograph], folder: Path) -> Mapping[int, set[str]]:
    """The patients of the plan's cohort whose images are nearly these photographs."""
    found: dict[int, set[str]] = {}
    if not folder.is_dir():
        return found
    cohort = Cohort.read_whole(folder)
    pixels = np.stack([photograph.pixels for photograph in photographs])
    if cohort.images.shape[1:] != pixels.shape[1:]:
        return found
    near = near_pairs(pixels, cohort.images)
    for position, row in chain(near, same_exposures_among(pixels, cohort.images)):
        name = cohort.pseudonyms[int(cohort.patient_of[row])]
        found.setdefault(position, set()).add(name)
    return found


def _names_by_looks(
    photographs: Sequence[Photograph],
    unseen: Sequence[int],
    intake: Intake,
    folder: Path,
    config: SiteConfig,
) -> Mapping[int, set[str]]:
    """The patients of the plan's cohort whose images were cropped to these, or whose eyes agree."""
    found: dict[int, set[str]] = {}
    if not unseen or not folder.is_dir():
        return found
    cohort = Cohort.read_whole(folder)
    pixels = np.stack([photographs[position].pixels for position in unseen])
    if cohort.images.shape[1:] != pixels.shape[1:]:
        return found
    pairs = list(same_crops_among(pixels, cohort.images))
    if may_show_eyes(intake):
        pairs += find_eyes_among(pixels, cohort.images, config.data.same_eye)
    for place, row in pairs:
        name = cohort.pseudonyms[int(cohort.patient_of[row])]
        found.setdefault(unseen[place], set()).add(name)
    return found
