"""`promptris data check` and `data fetch`, as a person meets them."""

from __future__ import annotations

import hashlib
import http.server
import json
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptris.data.readers.restricted_pickle import load_plain_pickle
from promptris.data.refshapes.writer import write_refshapes

Command = Callable[..., Any]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A whole RefShapes data set."""
    write_refshapes(tmp_path / "world", {"train": 4, "val": 2}, seed=2)
    return tmp_path / "world"


def as_refcoco(world: Path) -> None:
    """The same data under a benchmark's name, whose published counts it cannot have."""
    (world / "refshapes").rename(world / "refcoco")


# ------------------------------------------------------------------------------------------------------- check


def test_a_whole_data_set_passes(promptris: Command, world: Path) -> None:
    run = promptris("data", "check", "refshapes", "--data-root", world)
    assert run.code == 0
    rows = {row[0]: row[1:] for line in run.out.splitlines() if len(row := line.split()) == 4}
    assert rows["train"][1] == "4"
    assert rows["val"][1] == "2"
    assert run.complaints == ["promptris: nothing is off"]


def test_the_folder_may_come_from_the_environment(
    promptris: Command, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTRIS_DATA", str(world))
    assert promptris("data", "check", "refshapes").code == 0


def test_counts_stand_beside_the_published_ones(promptris: Command, world: Path) -> None:
    as_refcoco(world)
    run = promptris("data", "check", "refcoco", "--data-root", world, "--no-decode")
    assert run.code == 1
    train = next(line for line in run.out.splitlines() if line.startswith("train"))
    for number in ("42,404", "16,994", "120,624", " 4 ", "NO"):
        assert number in train
    test_a = next(line for line in run.out.splitlines() if line.startswith("testA"))
    assert test_a.split()[1:] == ["-", "1,975", "-", "750", "-", "5,657", "NO"]
    assert any("refcoco (unc) testA is missing" in line for line in run.complaints)
    assert any("published are 42,404 referents" in line for line in run.complaints)
    assert "things are off" in run.complaints[-1]


def test_everything_broken_is_named(promptris: Command, world: Path) -> None:
    images = sorted((world / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(b"")
    images[2].write_bytes(images[2].read_bytes()[:-200])
    Image.new("RGB", (20, 10)).save(images[3])
    path = world / "refshapes" / "instances.json"
    content = json.loads(path.read_text())
    victim = content["annotations"][-1]
    victim["segmentation"] = [[1, 1, 2, 2]]
    path.write_text(json.dumps(content))
    run = promptris("data", "check", "refshapes", "--data-root", world)
    assert run.code == 1
    assert "Traceback" not in run.err
    for sign in (
        f"image file {images[0].name} is missing",
        f"{images[1]} is not an image",
        f"{images[2]} is damaged or cut off",
        f"{images[3]} has 20 x 10 pixels, its annotations are for 128 x 128",
        f"annotation {victim['id']}: ",
    ):
        assert sum(sign in line for line in run.complaints) == 1, sign
    assert run.complaints[-1] == "promptris: 5 things are off, each named above"


def test_without_decoding_only_the_pixels_go_unseen(promptris: Command, world: Path) -> None:
    image = next((world / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-200])
    run = promptris("data", "check", "refshapes", "--data-root", world, "--no-decode")
    assert run.code == 0
    assert "as far as can be told without decoding" in run.err
    assert promptris("data", "check", "refshapes", "--data-root", world).code == 1


def test_links_into_nowhere_and_folders_are_missing_images(promptris: Command, world: Path) -> None:
    images = sorted((world / "images").iterdir())
    for path in images[:2]:
        path.unlink()
    images[0].symlink_to(world / "nowhere.png")
    images[1].mkdir()
    run = promptris("data", "check", "refshapes", "--data-root", world)
    assert run.code == 1
    for path in images[:2]:
        assert sum(f"image file {path.name} is missing" in line for line in run.complaints) == 1
    assert run.complaints[-1] == "promptris: 2 things are off, each named above"


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9]],
        [[500, 500, 600, 500, 600, 600]],
        {"size": [128, 128], "counts": [128 * 128]},
    ],
)
def test_a_target_without_pixels_is_named_and_kept(
    promptris: Command, world: Path, segmentation: Any
) -> None:
    path = world / "refshapes" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(content))
    before = promptris("data", "check", "refshapes", "--data-root", world, "--no-decode")
    assert before.code == 1
    victim = content["annotations"][0]
    assert before.complaints[0] == (
        f"promptris: refshapes, annotation {victim['id']} on image {victim['image_id']}: its mask has no pixel, or "
        "only that in the corner; are its coordinates pixels of the 128 x 128 image?"
    )
    assert before.complaints[1] == "promptris: 1 thing is off, each named above"


def test_no_referents_at_all_is_a_fault(promptris: Command, world: Path) -> None:
    (world / "refshapes" / "refs(unc).p").write_bytes(pickle.dumps([], protocol=2))
    run = promptris("data", "check", "refshapes", "--data-root", world)
    assert (run.code, run.complaints[0]) == (1, "promptris: refshapes has no referents")


def test_home_in_an_option_that_no_shell_expands(
    promptris: Command, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(world.parent))
    assert promptris("data", "check", "refshapes", f"--data-root=~/{world.name}").code == 0


def test_a_hub_copy_is_checked_by_its_path(promptris: Command, world: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = world / "copy"
    folder.mkdir()
    image = {"id": 1, "file_name": sorted((world / "images").iterdir())[0].name, "width": 128, "height": 128}
    annotation = {"id": 7, "image_id": 1, "segmentation": [[9, 9, 40, 9, 40, 40]]}
    sentence = {"raw": "it", "sent": "it", "sent_id": 5, "tokens": ["it"]}
    ids = {"ref_id": 1, "ann_id": 7, "image_id": 1, "category_id": 2, "split": "val", "sentences": [sentence]}
    row = {**ids, "raw_anns": json.dumps(annotation), "raw_image_info": json.dumps(image)}
    pq.write_table(pa.Table.from_pylist([row]), folder / "val.parquet")
    run = promptris("data", "check", folder)
    assert (run.code, run.complaints[-1]) == (0, "promptris: nothing is off")
    (folder / "val.parquet").write_bytes(b"nothing")
    run = promptris("data", "check", folder)
    assert (run.code, run.out) == (2, "")  # it is not told the layouts of own data
    assert "val.parquet" in run.err


def test_json_for_programs(promptris: Command, world: Path) -> None:
    as_refcoco(world)
    run = promptris("data", "check", "refcoco", "--data-root", world, "--json")
    report = json.loads(run.out)
    assert (run.code, report["ok"], report["name"], report["split_by"]) == (1, False, "refcoco", "unc")
    assert {row["split"]: row["published"] for row in report["counts"]}["val"] == [3811, 1500, 10834]
    assert any("testB is missing" in problem for problem in report["problems"])


def test_an_image_in_two_splits_is_noted(promptris: Command, world: Path) -> None:
    path = world / "refshapes" / "refs(unc).p"
    refs = load_plain_pickle(path)
    next(ref for ref in refs if ref["split"] == "train")["split"] = "val"
    path.write_bytes(pickle.dumps(refs, protocol=2))
    run = promptris("data", "check", "refshapes", "--data-root", world)
    assert run.code == 0
    assert "note: 1 images of val are in a training split too" in run.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["refcoco"], ["no folder is given for refcoco", "--data-root"]),
        (["refcoco", "--data-root", "nowhere"], ["data root nowhere is not a folder"]),
        (["refcoco-combined"], ["made of three data sets", "--data-root"]),
        (["atlantis"], ["'atlantis' is neither a known data set", "nor a folder"]),
    ],
)
def test_wrong_use_is_one_sentence(promptris: Command, arguments: list[str], words: list[str]) -> None:
    promptris("data", "check", *arguments).refused(*words)


def test_a_wrong_partition_names_those_there_are(promptris: Command, world: Path) -> None:
    run = promptris("data", "check", "refshapes", "--data-root", world, "--split-by", "umd")
    run.refused("has no split_by 'umd'", "there is unc")


def test_a_folder_in_no_known_layout_is_told_the_layouts(promptris: Command, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    run = promptris("data", "check", folder)
    assert run.code == 2
    assert "Traceback" not in run.err
    for word in ("expressions.jsonl", "mask", "ann_id"):
        assert word in run.out


# ------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            return

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    httpd.server_close()


def listed(url: str, served: Path, name: str, path: Path, **changes: Any) -> Path:
    """A list of sources with one archive, in the form of the package's own list."""
    content = (served / name).read_bytes()
    file = {
        "name": name,
        "urls": [f"{url}/{name}"],
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "md5": None,
        "verified": "published",
        "published_at": ["https://example.org/mini"],
        "unpack_to": ".",
        "top_folder": "mini",
        "unpacked_limit": 10_000,
        "gives": ["mini/refs(unc).p"],
        **changes,
    }
    about = {"about": "for a test", "homepage": "https://example.org", "licence": "none", "images": None}
    path.write_text(json.dumps({"mini": {**about, "files": [file]}}))
    return path


def test_fetch_downloads_verifies_and_unpacks_once(
    promptris: Command, server: tuple[str, Path], tmp_path: Path
) -> None:
    url, served = server
    with zipfile.ZipFile(served / "mini.zip", "w") as archive:
        archive.writestr("mini/refs(unc).p", b"content")
    sources = listed(url, served, "mini.zip", tmp_path / "sources.yaml")
    arguments = ("data", "fetch", "mini", "--data-root", tmp_path / "d", "--sources", sources)
    run = promptris(*arguments)
    assert (run.code, run.out) == (0, "")
    assert (tmp_path / "d/mini/refs(unc).p").read_bytes() == b"content"
    assert "sha256 as published; 1 file unpacked" in run.err
    assert f"promptris data check mini --data-root {tmp_path / 'd'}" in run.err
    assert "already there, nothing to do" in promptris(*arguments).err


@pytest.mark.parametrize(
    ("member", "changes", "words"),
    [
        ("mini/../../evil", {}, ["mini.zip", "evil"]),
        ("mini/refs(unc).p", {"sha256": "0" * 64}, ["mini.zip", "sha256"]),
        ("mini/refs(unc).p", {"size": 5}, ["mini.zip", "5"]),
    ],
)
def test_a_download_that_is_not_as_it_should_be_is_refused(
    promptris: Command,
    server: tuple[str, Path],
    tmp_path: Path,
    member: str,
    changes: dict[str, Any],
    words: list[str],
) -> None:
    url, served = server
    with zipfile.ZipFile(served / "mini.zip", "w") as archive:
        archive.writestr(member, b"content")
    sources = listed(url, served, "mini.zip", tmp_path / "sources.yaml", **changes)
    run = promptris("data", "fetch", "mini", "--data-root", tmp_path / "d", "--sources", sources)
    assert (run.code, run.out) == (2, "")
    assert "Traceback" not in run.err
    for word in words:
        assert word in run.complaints[-1]
    assert not list(tmp_path.rglob("evil"))
    assert not (tmp_path / "d/mini").exists()


def test_the_shipped_sources_name_what_is_known(promptris: Command, tmp_path: Path) -> None:
    promptris("data", "fetch", "atlantis", "--data-root", tmp_path / "d").refused(
        "no source for data set 'atlantis'", "refcocog", "coco-train2014"
    )


def test_fetch_knows_home_too(
    promptris: Command, server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served = server
    with zipfile.ZipFile(served / "mini.zip", "w") as archive:
        archive.writestr("mini/refs(unc).p", b"content")
    sources = listed(url, served, "mini.zip", tmp_path / "sources.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert promptris("data", "fetch", "mini", "--data-root=~/d", "--sources", sources).code == 0
    assert (tmp_path / "d/mini/refs(unc).p").is_file()
