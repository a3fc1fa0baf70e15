"""Which images a path, a folder or a glob stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from promptris.errors import InputError
from promptris.interfaces.jobs import Job, find_images, find_jobs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/b.png, photos/sub/a.jpg, photos/sub/deep/c.png, photos/notes.txt; the working folder is their parent."""
    for name in ("photos/b.png", "photos/sub/a.jpg", "photos/sub/deep/c.png", "photos/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_recursive_globs(tree: Path) -> None:
    assert find_images("photos/**/*.png", Path("out")) == ["photos/b.png", "photos/sub/deep/c.png"]
    assert len(find_images("photos/**/*.[jp]*g", Path("out"))) == 3
    assert len(find_images(f"{tree}/photos/**/?.*", Path("out"))) == 3


def test_a_folder_linked_into_itself_is_walked_once(tree: Path) -> None:
    (tree / "photos" / "sub" / "loop").symlink_to(tree / "photos")
    (tree / "photos" / "link.png").symlink_to("b.png")  # a second name of a file is an image of its own
    found = find_images("photos/**/*.png", Path("out"))
    assert found == ["photos/b.png", "photos/link.png", "photos/sub/deep/c.png"]


def test_links_to_nowhere_are_not_passed_over(tree: Path) -> None:
    (tree / "photos" / "broken.png").symlink_to("gone.png")
    assert "photos/broken.png" in find_images("photos", Path("out"))
    assert "photos/broken.png" in find_images("photos/*.png", Path("out"))


def test_results_are_no_images(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x_overlay.png", "deep/y_mask.png"):
        (tree / "photos" / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "photos" / "out" / name).write_bytes(b"")
    assert find_images("photos/**/*.png", Path("photos/out")) == ["photos/b.png", "photos/sub/deep/c.png"]
    assert "2 files in photos/out are left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="only files in photos/out"):
        find_images("photos/out/*.png", Path("photos/out"))


def test_many_files_in_order(tree: Path) -> None:
    names = [f"many/{number:05d}.png" for number in range(3000)]
    Path("many").mkdir()
    for name in names:
        Path(name).touch()
    assert find_images("many", Path("out")) == find_images("many/*", Path("out")) == names
    jobs, count = find_jobs("many", ["ring"], Path("out"))
    assert count == 3000 and next(iter(jobs)) == Job(names[0], ("ring",))
