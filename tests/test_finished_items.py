"""The index of finished items."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.errors import InputError
from promptris.finished_items import INDEX_FILE, FinishedItems, Item, file_digest, item_key


def make(folder: Path, key: str, stem: str = "x", image: str = "x.png") -> Item:
    names = [f"{stem}_01_ring_mask.png"]
    for name in names:
        (folder / name).write_bytes(b"mask")
    return Item(key, image, stem, [3, 4], [{"expression": "ring"}], [names], [])


def test_an_item_is_found_again_while_its_files_are_there(tmp_path: Path) -> None:
    item = make(tmp_path, "a")
    finished = FinishedItems(tmp_path)
    assert finished.find("a") is None and not (tmp_path / INDEX_FILE).exists()
    finished.add(item)
    for index in (finished, FinishedItems(tmp_path)):
        assert index.find("a") == item and index.find("b") is None and len(index) == 1
        assert index.stems == {"x": "x.png"}
    (tmp_path / item.files[0][0]).unlink()
    assert finished.find("a") is None


def test_a_line_cut_anywhere_loses_that_item_and_no_other(tmp_path: Path) -> None:
    finished = FinishedItems(tmp_path)
    first, second, third = (make(tmp_path, key, stem=key) for key in "abc")
    finished.add(first)
    finished.add(second)
    path = tmp_path / INDEX_FILE
    content = path.read_bytes()
    whole = content.index(b"\n") + 1
    for cut in range(whole, len(content) - 1, 7):
        path.write_bytes(content[:cut])
        again = FinishedItems(tmp_path)
        assert again.find("a") == first and again.find("b") is None
        again.add(third)
        assert list(again.items(["c", "a"])) == [third, first]
        assert list(FinishedItems(tmp_path).items(["a", "c"])) == [first, third]
    path.write_bytes(content[:-1])  # only the end of the line is missing: the item is whole
    again = FinishedItems(tmp_path)
    again.add(third)
    assert [FinishedItems(tmp_path).find(key) for key in "abc"] == [first, second, third]


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\n", b"[1]\n", b"{}\n", b'"text"\n', b"5\n", b"null\n", b'{"key": 1}\n']
)
def test_damaged_lines_are_skipped(tmp_path: Path, damage: bytes) -> None:
    item = make(tmp_path, "a")
    (tmp_path / INDEX_FILE).write_bytes(damage)
    FinishedItems(tmp_path).add(item)
    assert FinishedItems(tmp_path).find("a") == item


def test_files_that_another_item_takes_over_finish_the_first_one(tmp_path: Path) -> None:
    finished = FinishedItems(tmp_path)
    finished.add(make(tmp_path, "a"))
    other = make(tmp_path, "b")
    files = [tmp_path / name for name in other.files[0]]
    finished.claim("a", files)  # its own
    assert finished.find("a") is not None
    finished.claim("b", files)
    # Killed here, before the files of b are written: a may be half replaced.
    for index in (finished, FinishedItems(tmp_path)):
        assert index.find("a") is None and index.find("b") is None
    finished.add(other)
    for index in (finished, FinishedItems(tmp_path)):
        assert index.find("a") is None and index.find("b") == other


def test_what_cannot_be_written_is_said_and_the_next_line_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = FinishedItems(tmp_path)
    first, second = make(tmp_path, "a", "a"), make(tmp_path, "b", "b")
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, data):
            self.file.write(data[:9])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *arguments: Full(opened(self, *arguments)))
        with pytest.raises(InputError, match=r"cannot write .*done\.jsonl: No space left"):
            finished.add(first)
    finished.add(second)
    assert finished.find("b") == second
    again = FinishedItems(tmp_path)
    assert again.find("a") is None and again.find("b") == second


def test_a_folder_in_the_place_of_the_index_is_said(tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).mkdir()
    with pytest.raises(InputError, match=r"cannot read .*done\.jsonl"):
        FinishedItems(tmp_path)


def test_every_part_of_a_question_changes_the_key() -> None:
    base = ({"threshold": 0.5}, "x.png", "digest", ["ring"], 0)
    others = [
        ({"threshold": 0.6}, *base[1:]),
        (base[0], "y.png", *base[2:]),
        (*base[:2], "other", *base[3:]),
        (*base[:3], ["ring", "star"], 0),
        (*base[:4], 1),
    ]
    keys = {item_key(*question) for question in (base, *others)}
    assert len(keys) == 6 and item_key(*base) in keys


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "c").write_bytes(b"2")
    a, b, c = (file_digest(tmp_path / name) for name in "abc")
    assert a == b != c
    assert file_digest(tmp_path) is file_digest(tmp_path / "none") is file_digest(Path("/dev/zero")) is None
    assert file_digest(Path("a\0b")) is None
