"""The Croissant 1.0 metadata of a release, with its fields on responsible use (RAI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.study.plan import Study
from server.release.datasheet import NOT_FOR

IMAGE_COLUMNS = ("file_name", "label", "k")
PAIR_COLUMNS = ("file_name", "mask", "mask_nifti", "label")
AVERAGE_BIASES = (
    "Averages remove what is rare first; label shares follow the groups, not a population."
)
GENERATOR_BIASES = (
    "A generator trained under noise keeps what many patients share and loses what is rare."
)


def croissant(study: Study, statement: Mapping[str, Any], metadata_sha256: str) -> dict[str, Any]:
    """Return the metadata as plain data (mlcroissant builds and validates it)."""
    import mlcroissant as mlc

    # the facts and their words
    claim = statement["images"]["claim"]
    columns = IMAGE_COLUMNS if study.synthesis else PAIR_COLUMNS
    fields = [_column(name) for name in columns]
    metadata = mlc.Metadata(
        name=study.name,
        description=f"{study.title}. Synthetic medical images. {claim}",
        url=f"urn:kohort:{study.hash()}",
        version=study.release.version,
        date_published=study.release.date,
        license=study.release.licence,
        cite_as=f"{study.title}, version {study.release.version}",
        creators=[mlc.Organization(name=study.name)],
        personal_sensitive_information=f"{claim} {statement['updates']['claim']}",
        data_biases=AVERAGE_BIASES if study.synthesis else GENERATOR_BIASES,
        data_limitations=" ".join([statement["scope"], *statement["given"], *statement["limits"]]),
        data_use_cases="Training and testing of image models. "
        f"Must not be used for: {'; '.join(NOT_FOR)}.",
        data_social_impact="Made so that images can be shared without sharing patients; "
        "see privacy_statement.md.",
        data_release_maintenance_plan="Releases are immutable; corrections appear as a new "
        "version.",
        distribution=_distribution(study, metadata_sha256),
        record_sets=[mlc.RecordSet(id="items", name="items", fields=fields)],
    )

    # what the library does not write itself, or writes in another form
    document: dict[str, Any] = metadata.to_json()
    document["rai:hasSyntheticData"] = True
    document["datePublished"] = study.release.date
    return document


def _column(name: str) -> Any:
    """One column of metadata.csv."""
    import mlcroissant as mlc

    source = mlc.Source(file_object="metadata.csv", extract=mlc.Extract(column=name))
    return mlc.Field(id=f"items/{name}", name=name, data_types=[mlc.DataType.TEXT], source=source)


def _distribution(study: Study, metadata_sha256: str) -> list[Any]:
    """The table, the pictures and, for pairs, the masks."""
    import mlcroissant as mlc

    table = mlc.FileObject(
        id="metadata.csv",
        name="metadata.csv",
        content_url="metadata.csv",
        encoding_formats=["text/csv"],
        sha256=metadata_sha256,
    )
    files = [table, _file_set("images", "data/train/*/*.png", "image/png")]
    if study.synthesis is None:
        files.append(_file_set("masks", "masks/*.png", "image/png"))
        files.append(_file_set("masks-nifti", "masks/*.nii.gz", "application/gzip"))
    return files


def _file_set(name: str, pattern: str, encoding: str) -> Any:
    """All files of one kind."""
    import mlcroissant as mlc

    return mlc.FileSet(id=name, name=name, includes=[pattern], encoding_formats=[encoding])
