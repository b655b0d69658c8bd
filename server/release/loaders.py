"""Writes a release's pictures in the forms of loaders (step 5 of the build), and checks them.

In: the pictures and metadata.csv of a release. Out: data/train/metadata.csv, datalist.json, Parquet
with the pictures inside, and WebDataset tars of a large release.
Guarantees: each form holds exactly the table's pictures, labels and masks, in its order, with the
bytes of their PNG files; the same pictures give the same bytes; of the pictures one group of rows
is in memory at a time.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import RefusedError
from common.study.plan import Study
from kohort import layout
from kohort.files import read_capped
from kohort.forms import folder_rows, mask_of, training_list

TARS_FROM_IMAGES = 10_000  # smaller releases load fast enough from single files
SHARD_BYTES = 256 << 20  # of pictures in one Parquet file or tar
GROUP_ROWS = 100  # in one Parquet row group, so that a viewer reads few pictures at once
PICTURE_CAP_BYTES = 1 << 26
Row = dict[str, str]
Feature = Mapping[str, Any]


def write_loaders(part: Path, study: Study) -> None:
    """Write every form below `part`, from the metadata.csv and the pictures that lie there."""
    rows = read_rows(part)
    labels = study.strata()
    _write_table(part / layout.FOLDER_TABLE, folder_rows(rows))
    _write_datalist(part / layout.DATALIST, study, rows)
    _write_parquet(part, rows, labels)
    if len(rows) >= TARS_FROM_IMAGES:
        _write_tars(part, rows, labels)


def check_loaders(part: Path, labels: Sequence[str]) -> None:
    """Raise RefusedError unless Parquet and tars hold the pictures of metadata.csv, byte for byte.

    The two small files are checked by step 5 of `kohort verify`.
    """
    rows = read_rows(part)
    tars = sorted(part.glob("webdataset/*.tar"))
    forms = {"parquet": _parquet_contents(part)}
    if tars:
        forms["webdataset"] = _tar_contents(tars)
    for name, contents in forms.items():
        expected = (_content(part, row, labels) for row in rows)
        if any(found != wanted for found, wanted in zip_longest(contents, expected)):
            raise RefusedError(f"{name}: holds other pictures, labels or masks than metadata.csv")


def read_rows(part: Path) -> list[Row]:
    """Return the rows of metadata.csv."""
    text = read_capped(part / layout.METADATA, layout.TEXT_CAP_BYTES).decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write data/train/metadata.csv."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(table.getvalue(), encoding="utf-8")


def _write_datalist(path: Path, study: Study, rows: Sequence[Row]) -> None:
    """Write datalist.json, in the form of the Medical Segmentation Decathlon."""
    names = ("background", *study.strata()) if mask_of(rows[0]) else study.strata()
    datalist = {
        "name": study.name,
        "description": study.title,
        "labels": {str(index): name for index, name in enumerate(names)},
        "numTraining": len(rows),
        "training": training_list(rows, study.strata()),
    }
    path.write_text(json.dumps(datalist, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# ---- Parquet


def features(labels: Sequence[str], *, pairs: bool) -> dict[str, Feature]:
    """Return the columns of the Parquet files, in the words of Hugging Face `datasets`."""
    string = {"dtype": "string", "_type": "Value"}
    found: dict[str, Feature] = {"image": {"_type": "Image"}}
    if pairs:
        found["mask"] = {"_type": "Image"}
    found["label"] = {"names": list(labels), "_type": "ClassLabel"}
    found["file_name"] = string
    if not pairs:
        found["k"] = {"dtype": "int64", "_type": "Value"}
        found["grouping"] = string
    found["mechanism"] = string
    return found


def _write_parquet(part: Path, rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Write parquet/train-NNNNN-of-NNNNN.parquet, uncompressed: a PNG gets no smaller."""
    columns = features(labels, pairs=bool(mask_of(rows[0])))
    schema = pa.schema(
        [(name, _arrow_type(kind)) for name, kind in columns.items()],
        metadata={"huggingface": json.dumps({"info": {"features": columns}})},
    )
    shards = _shards(part, rows)
    (part / "parquet").mkdir()
    for number, shard in enumerate(shards):
        path = part / "parquet" / f"train-{number:05d}-of-{len(shards):05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="none") as writer:
            for start in range(0, len(shard), GROUP_ROWS):
                group = [_parquet_row(part, row, labels) for row in shard[start:][:GROUP_ROWS]]
                writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _arrow_type(feature: Feature) -> pa.DataType:
    """The Arrow type of a column."""
    if feature["_type"] == "Image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if feature["_type"] == "ClassLabel" or feature["dtype"] == "int64":
        return pa.int64()
    return pa.string()


def _parquet_row(part: Path, row: Row, labels: Sequence[str]) -> dict[str, Any]:
    """One row, pictures as bytes; columns that the schema lacks are left out by it."""
    image, mask, label = _content(part, row, labels)
    found: dict[str, Any] = dict(row)
    found["image"] = {"bytes": image, "path": Path(row["file_name"]).name}
    found["label"] = label
    if mask:
        found["mask"] = {"bytes": mask, "path": Path(mask_of(row)).name}
    if row.get("k"):
        found["k"] = int(row["k"])
    return found


def _parquet_contents(part: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield image, mask and label index of every row of every Parquet file, in order."""
    for path in sorted((part / "parquet").glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=GROUP_ROWS):
            for row in batch.to_pylist():
                mask = row["mask"]["bytes"] if "mask" in row else b""
                yield row["image"]["bytes"], mask, row["label"]


# ---- WebDataset


def _write_tars(part: Path, rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Write webdataset/train-NNNNNN.tar: NNNNN.png, NNNNN.mask.png of a pair, NNNNN.cls, .json."""
    (part / "webdataset").mkdir()
    for number, shard in enumerate(_shards(part, rows)):
        path = part / "webdataset" / f"train-{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in shard:
                image, mask, label = _content(part, row, labels)
                key = Path(row["file_name"]).stem
                _add(tar, f"{key}.png", image)
                if mask:
                    _add(tar, f"{key}.mask.png", mask)
                _add(tar, f"{key}.cls", str(label).encode())
                _add(tar, f"{key}.json", json.dumps(row, sort_keys=True).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without time, owner or group."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _tar_contents(paths: Sequence[Path]) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield image, mask and label index of every key of every tar, in order."""
    for path in paths:
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[ending] = file.read()
        for parts in found.values():
            yield parts["png"], parts.get("mask.png", b""), int(parts["cls"])


# ---- both


def _shards(part: Path, rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in order, at most SHARD_BYTES of pictures together."""
    shards: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        more = (part / row["file_name"]).stat().st_size
        if mask_of(row):
            more += (part / mask_of(row)).stat().st_size
        if shards[-1] and size + more > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += more
    return shards


def _content(part: Path, row: Row, labels: Sequence[str]) -> tuple[bytes, bytes, int]:
    """A row's image, its mask or nothing, and the index of its label."""
    image = read_capped(part / row["file_name"], PICTURE_CAP_BYTES)
    mask = read_capped(part / mask_of(row), PICTURE_CAP_BYTES) if mask_of(row) else b""
    return image, mask, labels.index(row["label"])
