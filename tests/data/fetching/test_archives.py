"""Unpacking zip archives: what is refused before a byte is written, and what an interruption leaves."""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from promptris.data.fetching import archives
from promptris.data.fetching.archives import extract
from promptris.errors import InputError

GOOD = {"refcoco/instances.json": b'{"images": []}' * 300, "refcoco/refs(unc).p": b"refs"}


def make_zip(path, members, method=zipfile.ZIP_DEFLATED):
    """members: name (or ZipInfo) -> bytes; names are written as they are given."""
    with zipfile.ZipFile(path, "w", method) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return path


def typed(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def tree(folder):
    return {
        str(path.relative_to(folder).as_posix()): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def test_files_come_out_whole_and_nothing_else_stays(tmp_path):
    archive = make_zip(tmp_path / "refcoco.zip", {"refcoco/": b"", **GOOD})
    seen = []
    report = extract(
        archive, tmp_path / "new" / "data", progress=lambda done, total: seen.append((done, total))
    )
    assert tree(tmp_path / "new" / "data") == GOOD
    assert report.files == {"refcoco/instances.json": 4200, "refcoco/refs(unc).p": 4}
    assert (report.written, report.kept, report.skipped) == (2, 0, 0)
    assert seen == [(4200, 4204), (4204, 4204)]
    assert [path.name for path in (tmp_path / "new" / "data").iterdir()] == ["refcoco"]


def test_only_one_top_folder_is_unpacked(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"__MACOSX/x": b"1", "refcoco/y": b"22", "refcoco": b"a file"})
    with pytest.raises(InputError, match="'refcoco' is a file and a folder"):
        extract(archive, tmp_path / "out", only="refcoco")
    archive = make_zip(tmp_path / "a.zip", {"__MACOSX/x": b"1", "./refcoco/y": b"22", "refcocog/z": b"3"})
    report = extract(archive, tmp_path / "out", only="refcoco")
    assert tree(tmp_path / "out") == {"refcoco/y": b"22"}
    assert report.skipped == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil", r"'\.\./evil' leads out of the folder"),
        ("refcoco/../../evil", "leads out of the folder"),
        ("/etc/evil", "'/etc/evil' has an absolute path"),
        ("C:/evil", "drive letter"),
        ("refcoco/c:evil", "drive letter"),
        ("..\\evil", "backslash"),
        ("./", "has no name"),
        (typed("link", stat.S_IFLNK | 0o777), "'link' is a symbolic link"),
        (typed("device", stat.S_IFCHR | 0o666), "'device' is neither a file nor a folder"),
        (typed("pipe", stat.S_IFIFO | 0o666), "'pipe' is neither a file nor a folder"),
    ],
)
def test_a_dangerous_member_is_named_and_nothing_is_written(tmp_path, name, reason):
    archive = make_zip(tmp_path / "a.zip", {"refcoco/first": b"fine", name: b"/etc/passwd"})
    with pytest.raises(InputError, match=reason) as caught:
        extract(archive, tmp_path / "out" / "deep")
    assert str(archive) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_name_with_nul_is_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"refs@hidden": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"refs@hidden", b"refs\0hidden"))
    with pytest.raises(InputError, match=r"'refs\\x00hidden' has a NUL"):
        extract(archive, tmp_path / "out")


def test_two_members_with_one_name_are_refused(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("refs.p", b"one")
        out.writestr("./refs.p", b"two")
    with pytest.raises(InputError, match="comes twice"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize(("flag", "reason"), [(1, "is encrypted"), (0, "packed by method 14")])
def test_what_cannot_be_read_safely_is_refused(tmp_path, flag, reason):
    archive = make_zip(
        tmp_path / "a.zip", {"a": b"x" * 100}, zipfile.ZIP_DEFLATED if flag else zipfile.ZIP_LZMA
    )
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= flag
    archive.write_bytes(data)
    with pytest.raises(InputError, match=reason):
        extract(archive, tmp_path / "out")


def test_declared_sizes_above_the_limit_are_refused(tmp_path):
    archive = make_zip(tmp_path / "bomb.zip", {"small": b"x", "large": bytes(1 << 20)})
    assert archive.stat().st_size < 3000
    with pytest.raises(
        InputError, match=r"declare 1048577 bytes, the largest is 'large', but at most 1000000"
    ):
        extract(archive, tmp_path / "out", max_bytes=1_000_000)
    assert not (tmp_path / "out").exists()


def test_the_disk_is_asked_first_and_what_is_there_needs_no_room(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "a.zip", GOOD)
    monkeypatch.setattr(archives, "free_bytes", lambda folder: 4203)
    with pytest.raises(InputError, match=r"needs 4204 more bytes in .*out, but only 4203 are free"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "refcoco").mkdir(parents=True)
    (tmp_path / "out" / "refcoco" / "refs(unc).p").write_bytes(b"refs")
    assert extract(archive, tmp_path / "out").kept == 1


def patched_size(archive, name, size, crc=None):
    """The archive with another declared size (and checksum) of one member, in both of its headers."""
    data = bytearray(archive.read_bytes())
    for mark, crc_at, size_at, name_at in ((b"PK\x03\x04", 14, 22, 30), (b"PK\x01\x02", 16, 24, 46)):
        at = data.index(mark)
        while data[at + name_at : at + name_at + len(name)] != name.encode():
            at = data.index(mark, at + 1)
        data[at + size_at : at + size_at + 4] = struct.pack("<I", size)
        if crc is not None:
            data[at + crc_at : at + crc_at + 4] = struct.pack("<I", crc)
    archive.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_member_that_holds_more_than_it_declares_is_stopped(tmp_path, method):
    content = b"0123456789" * 400_000
    archive = make_zip(tmp_path / "a.zip", {"bomb": content}, method)
    patched_size(archive, "bomb", 10, zlib.crc32(content[:10]))
    with pytest.raises(InputError, match=r"member 'bomb' (declares 10 bytes and holds more|\()"):
        extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_member_that_holds_less_than_it_declares_is_named(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"short": b"0123456789" * 50})
    patched_size(archive, "short", 600)
    with pytest.raises(InputError, match="member 'short' declares 600 bytes and holds 500"):
        extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_wrong_checksum_names_the_member_and_keeps_the_ones_before(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"first": b"good", "second": b"payload!"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"payload!", b"payl0ad!"))
    with pytest.raises(InputError, match=r"damaged at its member 'second' .*CRC"):
        extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {"first": b"good"}


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "cut"])
def test_what_is_no_whole_zip_is_named(tmp_path, content):
    archive = tmp_path / "a.zip"
    make_zip(archive, GOOD)
    archive.write_bytes(archive.read_bytes()[:-30] if content == "cut" else content)
    with pytest.raises(InputError, match=r"a\.zip is damaged or no zip file"):
        extract(archive, tmp_path / "out")
    with pytest.raises(InputError, match=r"nowhere\.zip is not a file"):
        extract(tmp_path / "nowhere.zip", tmp_path / "out")


def test_an_interrupted_run_is_finished_by_the_next(tmp_path):
    members = {f"train2014/{number}.jpg": bytes([number]) * 1000 for number in range(5)}
    archive = make_zip(tmp_path / "train2014.zip", members)

    def stop_after_two(done, total):
        if done == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "out", progress=stop_after_two)
    assert tree(tmp_path / "out") == {name: members[name] for name in list(members)[:2]}
    kept = tmp_path / "out" / "train2014" / "0.jpg"
    before = kept.stat().st_mtime_ns, kept.stat().st_ino
    # Half a file of the right size is not taken for the whole one.
    (tmp_path / "out" / "train2014" / "1.jpg").write_bytes(bytes(1000))
    report = extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == members
    assert (report.written, report.kept) == (4, 1)
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == before


def test_a_killed_run_leaves_a_stage_that_the_next_clears(tmp_path):
    archive = make_zip(tmp_path / "refcoco.zip", GOOD)
    stage = tmp_path / "out" / ".refcoco.zip.unpacking"
    stage.mkdir(parents=True)
    (stage / "member").write_bytes(b"half")
    extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == GOOD


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    archive = make_zip(tmp_path / "a.zip", GOOD)
    (tmp_path / "out" / "refcoco" / "refs(unc).p").mkdir(parents=True)
    with pytest.raises(InputError, match=r"refs\(unc\)\.p is a folder"):
        extract(archive, tmp_path / "out")


def test_a_place_on_another_disk_gets_a_copy(tmp_path, monkeypatch):
    source, final = tmp_path / "source", tmp_path / "folder" / "final"
    source.write_bytes(b"content")
    replace = Path.replace

    def refuse_between_disks(self, other):
        if self.parent != Path(other).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", refuse_between_disks)
    archives.move_in_place(source, final)
    assert tree(tmp_path) == {"folder/final": b"content"}
