"""What catalogues and repositories ask of a release: CITATION.cff, DataCite and Zenodo metadata.

In: the plan, the statement, who signed, and the section `citation` of server.yaml.
Out: plain data for each file.
Guarantees: every file says the same facts, and no file holds a time or a number of a patient.
Not covered: the DOI, which a repository gives to what it has received.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

import yaml

from common.study.plan import Study
from server.operator.config import Citation
from server.release.datasheet import NOT_FOR
from server.release.licences import LICENCES, Licence

MESSAGE = "If you use this data set, cite it by name, version and fingerprint."
DATACITE_SCHEMA = "http://datacite.org/schema/kernel-4"
SPDX = "https://spdx.org/licenses/"
ROR = {"schemeUri": "https://ror.org/"}
FORM = {"fundus": "fundus photography", "chest": "chest radiography", "vessels": "MR angiography"}
CITABLE = "fingerprint of the key that signed the release"
PLANNED = "the signed study plan"


@dataclass(frozen=True)
class Deposit:
    """The facts of a release that its citation and its metadata share.

    `claim` is what is promised, `images` how many pictures or pairs the release holds, `sites` are
    those whose statements are in it.
    """

    study: Study
    author: Citation
    claim: str
    images: int
    sites: tuple[str, ...]
    fingerprint: str

    @property
    def author_name(self) -> str:
        """Whom a citation names: the consortium, or the study where server.yaml says nothing."""
        return self.author.name or self.study.name

    @property
    def description(self) -> str:
        """What the release is, what is promised, and what it is not for."""
        kind = "images" if self.study.synthesis else "pairs of image and mask"
        return (
            f"{self.images} synthetic medical {kind}. {self.claim} "
            f"Must not be used for: {'; '.join(NOT_FOR)}."
        )

    @property
    def keywords(self) -> list[str]:
        """What somebody may search for."""
        words = ["synthetic data", "medical imaging", FORM[self.study.modality]]
        words += ["federated learning", "differential privacy"]
        return [*words, "k-anonymity"] if self.study.synthesis else words

    @property
    def licence(self) -> Licence | None:
        """What is known of the plan's licence; None where nothing is."""
        return LICENCES.get(self.study.release.licence)


def citation_cff(deposit: Deposit) -> str:
    """Return CITATION.cff, in the Citation File Format 1.2.0."""
    study = deposit.study
    author = {"name": deposit.author_name}
    if deposit.author.website:
        author["website"] = deposit.author.website
    fields: dict[str, Any] = {
        "cff-version": "1.2.0",
        "message": MESSAGE,
        "type": "dataset",
        "title": study.title,
        "version": study.release.version,
        "date-released": study.release.date,
        "authors": [author],
    }
    if deposit.author.contact:
        fields["contact"] = [{"name": deposit.author_name, "email": deposit.author.contact}]
    # the format takes no licence that its own list lacks
    if deposit.licence:
        fields["license"] = study.release.licence
    fields["identifiers"] = [
        {"type": "other", "value": deposit.fingerprint, "description": CITABLE},
        {"type": "other", "value": f"urn:kohort:{study.hash()}", "description": PLANNED},
    ]
    fields["keywords"] = deposit.keywords
    fields["abstract"] = deposit.description
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100)
    return text


def datacite(deposit: Deposit) -> dict[str, Any]:
    """Return the metadata for DataCite, schema 4.6, without the DOI that a repository gives."""
    study = deposit.study
    name = deposit.author_name
    publisher: dict[str, Any] = {"name": name}
    creator: dict[str, Any] = {"name": name, "nameType": "Organizational"}
    if deposit.author.ror:
        ror = {"nameIdentifier": deposit.author.ror, "nameIdentifierScheme": "ROR", **ROR}
        creator["nameIdentifiers"] = [ror]
        publisher |= {"publisherIdentifier": deposit.author.ror}
        publisher |= {"publisherIdentifierScheme": "ROR", **ROR}
    return {
        "schemaVersion": DATACITE_SCHEMA,
        "types": {"resourceTypeGeneral": "Dataset", "resourceType": "Synthetic medical images"},
        "creators": [creator],
        "contributors": [_collector(site) for site in deposit.sites],
        "titles": [{"title": study.title}],
        "publisher": publisher,
        "publicationYear": study.release.date[:4],
        "dates": [{"date": study.release.date, "dateType": "Issued"}],
        "version": study.release.version,
        "language": "en",
        "formats": ["image/png"],
        "sizes": [f"{deposit.images} images"],
        "subjects": [{"subject": word} for word in deposit.keywords] + _duo_subjects(deposit),
        "rightsList": [_rights(deposit)],
        "descriptions": [{"description": deposit.description, "descriptionType": "Abstract"}],
        "alternateIdentifiers": [
            _identifier(deposit.fingerprint, CITABLE),
            _identifier(f"urn:kohort:{study.hash()}", PLANNED),
            _identifier(f"{study.name}-{study.release.version}", "name of the release"),
        ],
    }


def zenodo(deposit: Deposit) -> dict[str, Any]:
    """Return what Zenodo's interface for deposits takes, as one JSON document."""
    study = deposit.study
    return {
        "metadata": {
            "upload_type": "dataset",
            "title": study.title,
            "version": study.release.version,
            "publication_date": study.release.date,
            "creators": [{"name": deposit.author_name}],
            "contributors": [{"name": site, "type": "DataCollector"} for site in deposit.sites],
            # this field is HTML
            "description": f"<p>{html.escape(deposit.description, quote=False)}</p>",
            "access_right": "open",
            # always said: Zenodo would fill in another one
            "license": study.release.licence.lower(),
            "keywords": deposit.keywords,
            "language": "eng",
            "notes": f"{MESSAGE} Signed by {deposit.fingerprint}.",
        }
    }


def _collector(site: str) -> dict[str, str]:
    """A hospital whose statement is in the release."""
    return {"name": site, "nameType": "Organizational", "contributorType": "DataCollector"}


def _identifier(value: str, kind: str) -> dict[str, str]:
    """An identifier that is no DOI."""
    return {"alternateIdentifier": value, "alternateIdentifierType": kind}


def _rights(deposit: Deposit) -> dict[str, str]:
    """The licence; with address and scheme where it is known."""
    name = deposit.study.release.licence
    if deposit.licence is None:
        return {"rights": name}
    return {
        "rights": deposit.licence.title,
        "rightsUri": deposit.licence.address,
        "rightsIdentifier": name.lower(),
        "rightsIdentifierScheme": "SPDX",
        "schemeUri": SPDX,
    }


def _duo_subjects(deposit: Deposit) -> list[dict[str, str]]:
    """The conditions of use as terms of the Data Use Ontology; none where they are unknown."""
    if deposit.licence is None:
        return []
    return [
        {
            "subject": term.label,
            "subjectScheme": "Data Use Ontology (DUO)",
            "schemeUri": "http://purl.obolibrary.org/obo/duo.owl",
            "valueUri": term.address,
            "classificationCode": term.code,
        }
        for term in deposit.licence.duo
    ]
