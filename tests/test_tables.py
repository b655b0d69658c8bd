"""A computed table lands between its markers, and nowhere else."""

from pathlib import Path

import pytest

from tests.tables import PAGE, table, write_block

PAGE_TEXT = "# A\n<!-- one -->\nold\n<!-- /one -->\nkept\n<!-- two -->\n<!-- /two -->\nend\n"


def page(folder: Path, text: str = PAGE_TEXT) -> Path:
    """A small page."""
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_a_block_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    path = page(tmp_path)
    write_block("one", "new\n\n", path)
    write_block("one", "newer", path)
    assert path.read_text() == PAGE_TEXT.replace("old", "newer")


@pytest.mark.parametrize("text", ["", "<!-- one -->\n", "<!-- /one -->\n<!-- one -->\n"])
def test_a_page_without_the_two_markers_is_refused(tmp_path: Path, text: str) -> None:
    path = page(tmp_path, text)
    with pytest.raises(ValueError, match="needs <!-- one -->"):
        write_block("one", "new", path)
    assert path.read_text() == text


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["x|y"], [3]]) == "| a |\n| --- |\n| x\\|y |\n| 3 |\n"


def test_the_page_has_both_blocks() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("faults", "attacks"):
        assert text.count(f"<!-- {name} -->\n") == text.count(f"<!-- /{name} -->") == 1
