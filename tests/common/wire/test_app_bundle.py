"""The thin app bundle: our bytes are Flower's bytes, and no code gets in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tomli
import tomli_w
from flwr.cli.build import build_fab_from_disk

from common.errors import RefusedError
from common.wire.app_bundle import PYPROJECT, app_files, archive, check_app, fab_hash, write_app

STUDY = b"study:\n  name: caf\xc3\xa9\n" + b"# " + b"x" * 5000 + b"\n"


@pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern:DeprecationWarning"
)  # Flower's own use of pathspec
def test_a_site_computes_the_hash_that_flower_reports(tmp_path: Path) -> None:
    pin = write_app(tmp_path / "app", STUDY)
    packed = build_fab_from_disk(tmp_path / "app")
    assert packed == archive(app_files(STUDY))
    assert hashlib.sha256(packed).hexdigest() == pin == fab_hash(STUDY)


def test_the_project_file_is_the_fixed_point_of_flowers_toml_writer() -> None:
    text = app_files(STUDY)["pyproject.toml"].decode()
    assert tomli_w.dumps(tomli.loads(text)) == text
    assert "dependencies = []" in PYPROJECT


def test_every_byte_of_the_plan_and_every_component_is_in_the_hash() -> None:
    assert (
        len({fab_hash(STUDY), fab_hash(STUDY + b"\n"), fab_hash(STUDY, server_app="evil:app")}) == 3
    )


@pytest.mark.parametrize(
    "name",
    ["server.py", "server/app.py", "extra.yaml", "client/__init__.pyc", ".gitignore", "lib.so"],
)
def test_a_bundle_with_anything_else_in_it_is_refused(name: str, tmp_path: Path) -> None:
    write_app(tmp_path, STUDY)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("import os")
    with pytest.raises(RefusedError) as refused:
        check_app(tmp_path)
    assert refused.value.code == "E-BUNDLE-CODE"


def test_a_changed_project_file_a_link_and_a_missing_plan_are_refused(tmp_path: Path) -> None:
    write_app(tmp_path, STUDY)
    (tmp_path / "pyproject.toml").write_bytes(
        app_files(STUDY, server_app="evil:app")["pyproject.toml"]
    )
    with pytest.raises(RefusedError, match="not the one kohort writes"):
        check_app(tmp_path)
    write_app(tmp_path, STUDY)
    (tmp_path / "study.yaml").unlink()
    with pytest.raises(RefusedError, match="lacks"):
        check_app(tmp_path)
    (tmp_path / "study.yaml").symlink_to("/etc/hostname")
    with pytest.raises(RefusedError, match="plain file"):
        check_app(tmp_path)


def test_a_plan_over_the_cap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="at most"):
        fab_hash(bytes((1 << 20) + 1))
