"""The Croissant 1.1 metadata of a release, with its fields on responsible use (RAI 1.0).

In: the plan, the statement, the digest of metadata.csv. Out: plain data. Record set `items` holds
the pixels of image and mask, label and split; `labels` and `splits` are what its fields refer to;
`table` is metadata.csv.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.study.plan import Study
from kohort import layout
from kohort.forms import MASK, MASK_NIFTI
from server.release.datasheet import NOT_FOR

CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
TRAINING_SPLIT = "http://mlcommons.org/croissant/TrainingSplit"
PARQUET = "parquet"
IMAGE_COLUMNS = ("file_name", "label", "k")
PAIR_COLUMNS = ("file_name", MASK, MASK_NIFTI, "label")
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
    metadata = mlc.Metadata(
        ctx=mlc.Context(conforms_to=CONFORMS_TO),
        conforms_to=CONFORMS_TO,
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
        record_sets=_record_sets(study),
    )

    # what the library does not write itself, or writes in another form
    document: dict[str, Any] = metadata.to_json()
    document["rai:hasSyntheticData"] = True
    document["datePublished"] = study.release.date
    return document


def _record_sets(study: Study) -> list[Any]:
    """The pictures with label and split, what these two refer to, and the table."""
    import mlcroissant as mlc

    # what label and split refer to
    integer, text = mlc.DataType.INTEGER, mlc.DataType.TEXT
    names = enumerate(study.strata())
    labels = mlc.RecordSet(
        id="labels",
        name="labels",
        key="labels/index",
        data_types=["sc:Enumeration"],
        fields=[_given("labels/index", integer), _given("labels/name", text)],
        data=[{"labels/index": index, "labels/name": name} for index, name in names],
    )
    splits = mlc.RecordSet(
        id="splits",
        name="splits",
        key="splits/name",
        data_types=["cr:Split"],
        fields=[_given("splits/name", text), _given("splits/url", mlc.DataType.URL)],
        data=[{"splits/name": "train", "splits/url": TRAINING_SPLIT}],
    )

    # every picture, as the Parquet files hold it
    fields = [_pixels("image")]
    if study.synthesis is None:
        fields.append(_pixels("mask"))
    fields.append(_column("items/label", integer, references="labels/index"))
    fields.append(_column("items/file_name", text))
    fields.append(_split())
    items = mlc.RecordSet(id="items", name="items", fields=fields)

    # the signed table
    columns = IMAGE_COLUMNS if study.synthesis else PAIR_COLUMNS
    table = [_cell(name) for name in columns]
    return [labels, splits, items, mlc.RecordSet(id="table", name="table", fields=table)]


def _given(name: str, data_type: str) -> Any:
    """A field whose values stand in the metadata itself."""
    import mlcroissant as mlc

    return mlc.Field(id=name, name=name, data_types=[data_type])


def _column(name: str, data_type: str, references: str | None = None) -> Any:
    """A column of the Parquet files, which may name a field of another record set."""
    import mlcroissant as mlc

    source = mlc.Source(file_set=PARQUET, extract=mlc.Extract(column=name.partition("/")[2]))
    target = mlc.Source(field=references) if references else None
    return mlc.Field(id=name, name=name, data_types=[data_type], source=source, references=target)


def _pixels(name: str) -> Any:
    """A picture: the PNG file inside a Parquet column."""
    import mlcroissant as mlc

    source = mlc.Source(
        file_set=PARQUET,
        extract=mlc.Extract(column=name),
        transforms=[mlc.Transform(json_path="bytes")],
    )
    return mlc.Field(
        id=f"items/{name}",
        name=f"items/{name}",
        data_types=[mlc.DataType.IMAGE_OBJECT],
        source=source,
    )


def _split() -> Any:
    """The split, which is part of the Parquet files' names."""
    import mlcroissant as mlc

    source = mlc.Source(
        file_set=PARQUET,
        extract=mlc.Extract(file_property=mlc.FileProperty.fullpath),
        transforms=[mlc.Transform(regex="parquet/(train)-.*")],
    )
    return mlc.Field(
        id="items/split",
        name="items/split",
        data_types=[mlc.DataType.TEXT],
        source=source,
        references=mlc.Source(field="splits/name"),
    )


def _cell(name: str) -> Any:
    """One column of metadata.csv."""
    import mlcroissant as mlc

    source = mlc.Source(file_object=layout.METADATA, extract=mlc.Extract(column=name))
    return mlc.Field(
        id=f"table/{name}", name=f"table/{name}", data_types=[mlc.DataType.TEXT], source=source
    )


def _distribution(study: Study, metadata_sha256: str) -> list[Any]:
    """The table, the Parquet files, the pictures and, for pairs, the masks."""
    import mlcroissant as mlc

    table = mlc.FileObject(
        id=layout.METADATA,
        name=layout.METADATA,
        content_url=layout.METADATA,
        encoding_formats=["text/csv"],
        sha256=metadata_sha256,
    )
    files = [
        table,
        _file_set(PARQUET, "parquet/*.parquet", "application/x-parquet"),
        _file_set("images", f"{layout.PICTURES}/*/*.png", "image/png"),
    ]
    if study.synthesis is None:
        files.append(_file_set("masks", "masks/*.png", "image/png"))
        files.append(_file_set("masks-nifti", "masks/*.nii.gz", "application/gzip"))
    return files


def _file_set(name: str, pattern: str, encoding: str) -> Any:
    """All files of one kind."""
    import mlcroissant as mlc

    return mlc.FileSet(id=name, name=name, includes=[pattern], encoding_formats=[encoding])
