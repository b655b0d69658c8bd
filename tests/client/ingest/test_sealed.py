"""A sealed folder as the hospital's source: the same cohort as of its plain files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from client.ingest.archive import PREFIX, mark_source
from client.ingest.build import ingest
from client.ingest.request import Limits
from client.ingest.sealed import SealedFolder
from common.study.intake import Intake
from tests import phantoms

ONE_WORKER = Limits(workers=1)


def test_a_sealed_folder_gives_the_cohort_of_its_files(
    intake: Callable[..., Intake], key: bytes, in_process: None, tmp_path: Path
) -> None:
    plain = tmp_path / "data"
    labels = phantoms.write_photographs(plain, 4).rename(tmp_path / "labels.csv")
    sealed = SealedFolder.make(tmp_path / "fetched", key)
    for path in sorted(plain.rglob("*")):
        if path.is_file():
            sealed.add(path.relative_to(plain).as_posix(), [path.read_bytes()])
    reports = []
    for number, source in enumerate((plain, sealed.folder)):
        out = tmp_path / str(number) / "cohort"
        reports.append(ingest(source, intake(), key, out, labels_csv=labels, limits=ONE_WORKER))
        assert list(out.parent.glob(f"{PREFIX}*")) == []
    assert reports[0] == reports[1]
    for name in ("index.sqlite", "quarantine.csv", "images.npy"):
        parts = [tmp_path / part / "cohort" / name for part in ("0", "1")]
        assert parts[0].read_bytes() == parts[1].read_bytes()
    # what was fetched anew is another file, what was not is the same
    before = mark_source(sealed.folder, tmp_path / "none", ONE_WORKER, skip=None, key=key)
    name = min(before)
    sealed.add(name, [b"other"])
    after = mark_source(sealed.folder, tmp_path / "none", ONE_WORKER, skip=None, key=key)
    assert [one for one in before if before[one] != after[one]] == [name]
