"""`data fetch` against a local server that drops, lies, changes its mind and serves dangerous archives."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from promptris.data.fetching import download as download_module
from promptris.data.fetching.download import Patience, RemoteFile, download
from promptris.data.fetching.fetch import fetch, read_sources
from promptris.data.readers.refer import DEFAULT_SPLIT_BY, IMAGE_FOLDERS
from promptris.errors import InputError

PATIENCE = Patience(timeout=5, retries=3, first_wait=0, longest_wait=0)
# Every kilobyte differs, so that a part put at the wrong place shows.
BODY = b"".join(f"{number:08d}".encode() * 128 for number in range(300))


@dataclass
class Page:
    """What the server does for one address; lists give what the successive requests meet."""

    body: bytes = BODY
    etag: str | None = '"one"'
    last_modified: str | None = None
    ranges: bool = True
    obey_if_range: bool = True
    drop_after: list[int | None] = field(default_factory=list)
    stall_after: list[int | None] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    length: int | str | None = "right"
    chunked: bool = False
    endless: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    path: str
    range: str | None
    if_range: str | None
    encoding: str | None
    sent: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        self.close_connection = True
        headers = self.headers
        seen = Seen(self.path, headers["Range"], headers["If-Range"], headers["Accept-Encoding"])
        server.seen.append(seen)
        page = server.pages.get(self.path)
        status = 404 if page is None else page.status.pop(0) if page.status else 200
        if status != 200:
            self.send_response(status)
            for name, value in (page.headers if page else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, total = 0, len(page.body)
        match = re.fullmatch(r"bytes=(\d+)-", seen.range or "")
        same = seen.if_range in (None, page.etag, page.last_modified) or not page.obey_if_range
        if match and page.ranges and same:
            start = int(match[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        for name, value in (
            ("ETag", page.etag),
            ("Last-Modified", page.last_modified),
            *page.headers.items(),
        ):
            if value is not None:
                self.send_header(name, value)
        if page.chunked or page.endless:
            self.send_header("Transfer-Encoding", "chunked")
        elif page.length is not None:
            self.send_header("Content-Length", str(total - start if page.length == "right" else page.length))
        self.end_headers()
        stall = page.stall_after.pop(0) if page.stall_after else None
        stop = page.drop_after.pop(0) if page.drop_after else stall
        body = page.body[start : total if stop is None else start + stop]
        try:
            while True:
                if page.chunked or page.endless:
                    self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
                else:
                    self.wfile.write(body)
                seen.sent += len(body)
                if not page.endless:
                    break
            if page.chunked:
                self.wfile.write(b"0\r\n\r\n")
            if stall is not None:
                self.wfile.flush()
                server.stalled.wait(10)
        except OSError:
            seen.sent = -1


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.seen, server.stalled = {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.stalled.set()
    server.shutdown()
    server.server_close()
    thread.join()


SIZE = len(BODY)
SHA256 = hashlib.sha256(BODY).hexdigest()


def remote(server, *paths, size=SIZE, sha256=SHA256):
    """/file unless paths are given; sha256=None for a file whose hash nobody knows."""
    urls = tuple(server.url + path for path in paths or ("/file",))
    return RemoteFile("file.bin", urls, size, {} if sha256 is None else {"sha256": sha256})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def failure(wanted, folder):
    with pytest.raises(InputError) as caught:
        download(wanted, folder, patience=PATIENCE)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- one file, resumed


def test_a_dropped_connection_is_continued_where_it_stopped(server, tmp_path):
    server.pages["/file"] = Page(drop_after=[100_000, 50_001])
    notes = []
    got = download(
        remote(server),
        tmp_path,
        patience=PATIENCE,
        progress=lambda p: notes.append(p.note) if p.note else None,
    )
    assert got.path.read_bytes() == BODY
    assert [seen.range for seen in server.seen] == [None, "bytes=100000-", "bytes=150001-"]
    assert [seen.if_range for seen in server.seen] == [None, '"one"', '"one"']
    assert {seen.encoding for seen in server.seen} == {"identity"}
    # No byte came twice.
    assert sum(seen.sent for seen in server.seen) == got.received == SIZE == 307_200
    assert (got.checked, got.resumed_from) == (("sha256",), 0)
    assert names(tmp_path) == ["file.bin"]
    assert notes == [
        f"{server.url}/file stopped after {at} of 307200 bytes; trying again in 0 s (1 of 3)"
        for at in (100_000, 150_001)
    ]


def test_an_interrupted_run_leaves_a_part_that_the_next_run_continues(server, tmp_path):
    server.pages["/file"] = Page(body=BODY * 10)
    sha256 = hashlib.sha256(BODY * 10).hexdigest()
    wanted = remote(server, size=SIZE * 10, sha256=sha256)

    def interrupt(progress):
        if progress.done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(wanted, tmp_path, patience=PATIENCE, progress=interrupt)
    assert names(tmp_path) == ["file.bin.part", "file.bin.part.json"]
    have = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < have < SIZE * 10
    got = download(wanted, tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY * 10
    assert (got.resumed_from, got.received) == (have, SIZE * 10 - have)
    assert server.seen[1].range == f"bytes={have}-"


def test_a_stalled_connection_times_out_and_is_continued(server, tmp_path):
    server.pages["/file"] = Page(stall_after=[1000])
    got = download(remote(server), tmp_path, patience=Patience(0.3, 3, 0, 0))
    assert got.path.read_bytes() == BODY
    assert server.seen[1].range == "bytes=1000-"


def test_a_server_that_ignores_ranges_starts_again(server, tmp_path):
    server.pages["/file"] = Page(ranges=False, drop_after=[1000])
    got = download(remote(server), tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert got.received == SIZE + 1000
    assert [seen.range for seen in server.seen] == [None, "bytes=1000-"]


def test_a_server_that_always_stops_is_given_up(server, tmp_path):
    server.pages["/file"] = Page(ranges=False, drop_after=[1000] * 50)
    text = failure(remote(server), tmp_path)
    assert "file.bin could not be downloaded" in text
    assert f"{server.url}/file stopped after 1000 of 307200 bytes (4 tries)" in text
    assert "run the same command again" in text
    assert len(server.seen) == 4


def test_progress_gives_new_tries(server, tmp_path):
    server.pages["/file"] = Page(drop_after=[1000] * 20)
    assert download(remote(server), tmp_path, patience=PATIENCE).received == SIZE
    assert len(server.seen) == 21


def test_a_file_that_changed_in_between_starts_again(server, tmp_path):
    server.pages["/file"] = Page(body=b"old" * 1000, etag='"old"', drop_after=[2000] + [0] * 4)
    wanted = remote(server, size=None, sha256=None)
    failure(wanted, tmp_path)
    assert json.loads((tmp_path / "file.bin.part.json").read_text())["etag"] == '"old"'
    server.pages["/file"] = Page(etag='"new"')
    got = download(wanted, tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert (server.seen[-1].range, server.seen[-1].if_range) == ("bytes=2000-", '"old"')
    assert got.resumed_from == 0


@pytest.mark.parametrize("change", [{"etag": '"new"'}, {"etag": None}])
def test_a_changed_file_is_noticed_although_if_range_is_ignored(server, tmp_path, change):
    server.pages["/file"] = Page(body=b"old" * 1000, etag='"old"', drop_after=[2000] + [0] * 4)
    wanted = remote(server, size=None, sha256=None)
    failure(wanted, tmp_path)
    server.pages["/file"] = Page(obey_if_range=False, **change)
    assert download(wanted, tmp_path, patience=PATIENCE).path.read_bytes() == BODY


def test_a_weak_tag_is_not_used_to_continue(server, tmp_path):
    date = "Wed, 13 Apr 2022 01:17:18 GMT"
    server.pages["/file"] = Page(etag='W/"one"', last_modified=date, drop_after=[1000])
    assert download(remote(server), tmp_path, patience=PATIENCE).received == SIZE
    assert server.seen[1].if_range == date


def test_without_hash_or_memory_a_part_is_not_trusted(server, tmp_path):
    server.pages["/file"] = Page()
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    got = download(remote(server, sha256=None), tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert server.seen[0].range is None


def test_with_a_hash_a_part_from_elsewhere_is_continued(server, tmp_path):
    server.pages["/file"] = Page()
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    (tmp_path / "file.bin.part.json").write_text('{"url": "http://elsewh')
    got = download(remote(server), tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert (server.seen[0].range, server.seen[0].if_range) == ("bytes=1000-", None)


def test_a_whole_part_needs_no_request(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(BODY)
    got = download(remote(server), tmp_path, patience=PATIENCE)
    assert (got.received, got.checked, server.seen) == (0, ("sha256",), [])


def test_416_for_a_whole_part_means_done_and_otherwise_starts_again(server, tmp_path):
    server.pages["/file"] = Page()
    wanted = remote(server, size=None)
    (tmp_path / "file.bin.part").write_bytes(BODY)
    got = download(wanted, tmp_path, patience=PATIENCE)
    assert (got.received, len(server.seen)) == (0, 1)
    got.path.unlink()
    (tmp_path / "file.bin.part").write_bytes(BODY + b"too much")
    got = download(wanted, tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert [seen.range for seen in server.seen] == ["bytes=307200-", "bytes=307208-", None]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.pages["/file"] = Page(status=[503, 429, 500], headers={"Retry-After": "0"})
    assert download(remote(server), tmp_path, patience=PATIENCE).received == SIZE
    assert len(server.seen) == 4


@pytest.mark.parametrize("after", ["\u00b2", "9" * 5000, "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_time_to_wait_that_is_no_plain_number_is_passed_over(server, tmp_path, after):
    server.pages["/file"] = Page(status=[503], headers={"Retry-After": after})
    assert download(remote(server), tmp_path, patience=PATIENCE).received == SIZE


@pytest.mark.parametrize("length", ["\u00b2", "9" * 5000, "-5", "1e6"])
def test_a_length_that_is_no_plain_number_is_passed_over(server, tmp_path, length):
    server.pages["/file"] = Page(length=length)
    assert download(remote(server), tmp_path, patience=PATIENCE).received == SIZE


@pytest.mark.parametrize("size", ["\u0663", "9" * 5000])
def test_a_range_that_is_no_plain_number_is_passed_over(size):
    assert download_module._content_range(f"bytes 5-9/{size}") == (None, None)
    assert download_module._content_range("bytes 5-9/10") == (5, 10)


# ------------------------------------------------------------------------------------------------ one file, lies


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_a_length_that_contradicts_the_list_is_named(server, tmp_path, size):
    server.pages["/file"] = Page()
    text = failure(remote(server, size=size), tmp_path)
    assert f"{server.url}/file offers 307200 bytes, but {size} are expected" in text
    assert names(tmp_path) == []


def test_a_body_shorter_than_promised_is_named(server, tmp_path):
    server.pages["/file"] = Page(body=BODY[:500], ranges=False, length=SIZE)
    text = failure(remote(server), tmp_path)
    assert "file.bin" in text
    assert "stopped after 500 of 307200 bytes" in text


def test_a_chunked_body_that_ends_early_is_named_at_once(server, tmp_path):
    server.pages["/file"] = Page(body=BODY[:500], chunked=True)
    text = failure(remote(server), tmp_path)
    assert "sent 500 bytes, but 307200 are expected" in text
    assert len(server.seen) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("page", [{"endless": True}, {"length": None, "body": BODY * 20}])
def test_an_endless_body_is_stopped_at_the_expected_size(server, tmp_path, page):
    server.pages["/file"] = Page(**page)
    most = 0

    def watch(progress):
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in tmp_path.glob("*.part")))

    with pytest.raises(InputError, match=r"file sends more than the 307200 bytes that are expected"):
        download(remote(server), tmp_path, patience=PATIENCE, progress=watch)
    assert 0 < most <= SIZE
    assert names(tmp_path) == []


def test_an_endless_body_of_unknown_size_is_stopped_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "UNSIZED_LIMIT", 1_000_000)
    server.pages["/file"] = Page(endless=True)
    text = failure(remote(server, size=None, sha256=None), tmp_path)
    assert "sends more than the 1000000 bytes that are allowed where no size is known" in text
    assert names(tmp_path) == []


@pytest.mark.parametrize("page", [{"chunked": True}, {"length": None}])
def test_a_body_without_a_length_is_accepted(server, tmp_path, page):
    server.pages["/file"] = Page(**page)
    got = download(remote(server, size=None, sha256=None), tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert got.checked == ()
    assert download(remote(server, sha256=None), tmp_path, patience=PATIENCE).checked == ("size",)


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "sent a web page instead of the file"),
        ({"headers": {"Content-Encoding": "gzip"}}, "sent the file encoded as gzip"),
        ({"body": b"", "etag": None}, "sent an empty file"),
        ({"status": [204]}, "answered 204"),
        ({"status": [403]}, "answered 403 Forbidden"),
        ({"status": [302], "headers": {"Location": "file:///etc/passwd"}}, "answered 302"),
    ],
)
def test_an_answer_that_is_not_the_file_is_named(server, tmp_path, page, reason):
    server.pages["/file"] = Page(**page)
    assert reason in failure(remote(server, size=None, sha256=None), tmp_path)
    assert len(server.seen) == 1


def test_redirects_are_followed_and_keep_the_range(server, tmp_path):
    server.pages["/file"] = Page(status=[302], headers={"Location": "/there"})
    server.pages["/there"] = Page()
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    assert download(remote(server), tmp_path, patience=PATIENCE).received == SIZE - 1000
    assert [(seen.path, seen.range) for seen in server.seen] == [
        ("/file", "bytes=1000-"),
        ("/there", "bytes=1000-"),
    ]


def test_a_wrong_hash_sets_the_file_aside_and_the_next_address_is_tried(server, tmp_path):
    server.pages["/bad"] = Page(body=BODY[::-1])
    server.pages["/good"] = Page()
    wrong, right = (hashlib.sha256(body).hexdigest() for body in (BODY[::-1], BODY))
    notes = []
    got = download(
        remote(server, "/bad", "/good"), tmp_path, patience=PATIENCE, progress=lambda p: notes.append(p.note)
    )
    assert got.path.read_bytes() == BODY
    assert got.url == f"{server.url}/good"
    assert (tmp_path / "file.bin.wrong").read_bytes() == BODY[::-1]
    said = f"{server.url}/bad sent a file that has the sha256 {wrong}, but {right} is published"
    assert f"{said} (it is file.bin.wrong now)" in notes
    assert server.seen[1].range is None
    got.path.unlink()
    assert said in failure(remote(server, "/bad"), tmp_path)
    assert names(tmp_path) == ["file.bin.wrong"]


def test_a_file_that_is_there_is_checked_and_replaced_if_wrong(server, tmp_path):
    server.pages["/file"] = Page()
    (tmp_path / "file.bin").write_bytes(BODY)
    assert download(remote(server), tmp_path).url is None
    assert server.seen == []
    (tmp_path / "file.bin").write_bytes(b"damaged")
    assert download(remote(server), tmp_path).path.read_bytes() == BODY
    assert (tmp_path / "file.bin.wrong").read_bytes() == b"damaged"


def test_every_address_is_named_with_its_reason(server, tmp_path):
    server.pages["/b"] = Page(body=b"short")
    dead = RemoteFile("x", ("http://127.0.0.1:9/x",)).urls
    wanted = remote(server, "/a", "/b")
    text = failure(RemoteFile("file.bin", wanted.urls + dead, wanted.size, wanted.hashes), tmp_path)
    assert f"{server.url}/a answered 404 Not Found; " in text
    assert f"{server.url}/b offers 5 bytes, but 307200 are expected; " in text
    assert "http://127.0.0.1:9/x could not be reached (" in text
    assert f"put the file at {tmp_path / 'file.bin'} yourself" in text


def test_a_part_of_one_address_is_finished_by_another(server, tmp_path):
    server.pages["/a"] = Page(etag='"a"', drop_after=[1000] + [0] * 10)
    server.pages["/b"] = Page(etag='"b"')
    got = download(remote(server, "/a", "/b"), tmp_path, patience=PATIENCE)
    assert got.path.read_bytes() == BODY
    assert (server.seen[-1].path, server.seen[-1].range) == ("/b", "bytes=1000-")
    assert server.seen[-1].if_range is None
    assert got.received == SIZE


def test_the_disk_is_asked_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "free_bytes", lambda folder: SIZE - 1001)
    server.pages["/file"] = Page()
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    text = failure(remote(server), tmp_path)
    assert text.startswith("file.bin needs 306200 more bytes in ")
    assert "only 306199 are free" in text
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:1000]


# ------------------------------------------------------------------------------------------------- whole data sets

REFCOCO = {"refcoco/instances.json": b'{"images": []}', "refcoco/refs(unc).p": b"refs" * 1000}
PHOTOS = {f"train2014/COCO_train2014_{number:012d}.jpg": bytes([number]) * 3000 for number in range(4)}


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            # A fixed date: the same members always make the same bytes.
            archive.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, content)
    return out.getvalue()


def file_entry(server, name, body, **changes):
    server.pages[f"/{name}"] = Page(body=body)
    entry = {
        "name": name,
        "urls": [f"{server.url}/{name}"],
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "md5": None,
        "verified": "unknown",
        "published_at": [],
        "unpack_to": ".",
        "top_folder": "refcoco",
        "unpacked_limit": 100_000,
        "gives": list(REFCOCO),
        **changes,
    }
    return {key: value for key, value in entry.items() if value != "absent"}


def about(files, **more):
    return {"about": "a", "homepage": "b", "licence": "c", "files": files, **more}


def listing(path, **entries):
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


@pytest.fixture
def sources(server, tmp_path):
    photos = file_entry(
        server,
        "photos.zip",
        zipped(PHOTOS),
        unpack_to="images",
        top_folder="train2014",
        gives={"folder": "images/train2014", "count": 4, "suffix": ".jpg", "also_in": ["train2014"]},
    )
    return listing(
        tmp_path / "sources.yaml",
        photos=about([photos]),
        refcoco=about([file_entry(server, "refcoco.zip", zipped(REFCOCO))], images="photos"),
    )


def test_a_data_set_lands_where_the_reader_looks(server, tmp_path, sources):
    root, seen = tmp_path / "new" / "data", []
    report = fetch("refcoco", root, sources, progress=seen.append, patience=PATIENCE)
    for name, content in REFCOCO.items():
        assert (root / name).read_bytes() == content
    for name, content in PHOTOS.items():
        assert (root / "images" / name).read_bytes() == content
    assert "images/train2014" in IMAGE_FOLDERS
    assert [(file.name, file.status, file.written) for file in report.files] == [
        ("refcoco.zip", "downloaded", 2),
        ("photos.zip", "downloaded", 4),
    ]
    assert not report.nothing_to_do
    size = len(zipped(REFCOCO))
    assert report.files[0].sentence == (
        f"refcoco.zip: {size} bytes downloaded; sha256 as published; 2 files unpacked"
    )
    assert {(p.file, p.stage) for p in seen if not p.note} == {
        (name, stage) for name in ("refcoco.zip", "photos.zip") for stage in ("download", "verify", "unpack")
    }
    last = [p for p in seen if p.file == "refcoco.zip" and p.stage == "download"][-1]
    assert (last.done, last.total) == (size, size)


def test_the_second_run_downloads_nothing(server, tmp_path, sources):
    fetch("refcoco", tmp_path, sources, patience=PATIENCE)
    server.seen.clear()
    report = fetch("refcoco", tmp_path, sources, patience=PATIENCE)
    assert server.seen == []
    assert report.nothing_to_do
    assert report.files[0].sentence == "refcoco.zip: already there, nothing to do (sha256 as published)"
    # The archives are not needed for that.
    for path in (tmp_path / "downloads").glob("*.zip"):
        path.unlink()
    assert fetch("refcoco", tmp_path, sources, patience=PATIENCE).nothing_to_do
    assert server.seen == []


def test_a_file_that_went_missing_comes_back_from_the_kept_archive(server, tmp_path, sources):
    fetch("refcoco", tmp_path, sources, patience=PATIENCE)
    server.seen.clear()
    (tmp_path / "refcoco" / "instances.json").unlink()
    report = fetch("refcoco", tmp_path, sources, patience=PATIENCE)
    assert (tmp_path / "refcoco" / "instances.json").read_bytes() == REFCOCO["refcoco/instances.json"]
    assert server.seen == []
    assert report.files[0].sentence == (
        "refcoco.zip: was downloaded before; sha256 as published; 1 file unpacked, 1 kept"
    )
    assert report.files[1].status == "already there"


def test_new_content_in_the_list_is_fetched_and_new_addresses_are_not(server, tmp_path, sources):
    fetch("refcoco", tmp_path, sources, with_images=False, patience=PATIENCE)
    entry = file_entry(server, "refcoco.zip", zipped(REFCOCO))
    entry["urls"].insert(0, f"{server.url}/mirror.zip")
    moved = listing(tmp_path / "moved.yaml", refcoco=about([entry]))
    server.seen.clear()
    assert fetch("refcoco", tmp_path, moved, patience=PATIENCE).nothing_to_do
    fresh = zipped({**REFCOCO, "refcoco/refs(unc).p": b"better refs"})
    changed = listing(tmp_path / "changed.yaml", refcoco=about([file_entry(server, "refcoco.zip", fresh)]))
    report = fetch("refcoco", tmp_path, changed, patience=PATIENCE)
    assert (tmp_path / "refcoco" / "refs(unc).p").read_bytes() == b"better refs"
    assert (report.files[0].written, report.files[0].kept) == (1, 1)
    assert (tmp_path / "downloads" / "refcoco.zip.wrong").exists()


@pytest.mark.parametrize("folder", ["images/train2014", "train2014"])
def test_images_that_came_another_way_are_not_downloaded(server, tmp_path, sources, folder):
    for name, content in PHOTOS.items():
        path = tmp_path / folder / name.split("/")[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    report = fetch("refcoco", tmp_path, sources, patience=PATIENCE)
    assert [file.status for file in report.files] == ["downloaded", "found in place"]
    assert "not downloaded here: not checked" in report.files[1].sentence
    assert {seen.path for seen in server.seen} == {"/refcoco.zip"}
    # One image less, and they are fetched.
    path.unlink()
    assert fetch("refcoco", tmp_path, sources, patience=PATIENCE).files[1].status == "downloaded"


def test_without_images_only_the_annotations_come(server, tmp_path, sources):
    report = fetch("refcoco", tmp_path, sources, with_images=False, patience=PATIENCE)
    assert [file.name for file in report.files] == ["refcoco.zip"]
    assert not (tmp_path / "images").exists()


def test_an_archive_put_there_by_hand_is_used(server, tmp_path, sources):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "refcoco.zip").write_bytes(zipped(REFCOCO))
    report = fetch("refcoco", tmp_path, sources, with_images=False, patience=PATIENCE)
    assert (report.files[0].status, server.seen) == ("unpacked", [])


def test_a_killed_unpacking_is_finished_by_the_next_run(server, tmp_path, sources):
    def kill(progress):
        if (progress.stage, progress.done) == ("unpack", 6000):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("photos", tmp_path, sources, progress=kill, patience=PATIENCE)
    server.seen.clear()
    report = fetch("photos", tmp_path, sources, patience=PATIENCE)
    assert (report.files[0].written, report.files[0].kept, server.seen) == (2, 2, [])


def test_a_plain_file_is_placed_and_the_missing_hash_is_said(server, tmp_path):
    def entry(name, body, **more):
        absent = dict.fromkeys(("unpack_to", "top_folder", "unpacked_limit"), "absent")
        return file_entry(
            server, name, body, sha256=None, place_at=f"g/({name})", gives=[f"g/({name})"], **absent, **more
        )

    files = [entry("sized.json", b"[1]"), entry("unsized.json", b"[22]", size=None)]
    sources = listing(tmp_path / "sources.yaml", g=about(files))
    report = fetch("g", tmp_path, sources, patience=PATIENCE)
    assert (tmp_path / "g" / "(sized.json)").read_bytes() == b"[1]"
    assert (tmp_path / "g" / "(unsized.json)").read_bytes() == b"[22]"
    assert [file.sentence for file in report.files] == [
        "sized.json: 3 bytes downloaded; no published hash is known: only its size was checked",
        "unsized.json: 4 bytes downloaded; no published hash or size is known: not checked",
    ]
    again = fetch("g", tmp_path, sources, patience=PATIENCE)
    assert again.nothing_to_do
    assert "no published hash is known: only its size was checked" in again.files[0].sentence


def link():
    info = zipfile.ZipInfo("refcoco/link")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../evil", "leads out of the folder"),
        ("refcoco/../../evil", "leads out of the folder"),
        ("/evil", "has an absolute path"),
        (link(), "is a symbolic link"),
    ],
)
def test_a_dangerous_archive_is_refused_and_writes_nothing(server, tmp_path, member, reason):
    body = zipped({**REFCOCO, member: b"/etc/passwd"})
    sources = listing(tmp_path / "s.yaml", refcoco=about([file_entry(server, "refcoco.zip", body)]))
    root = tmp_path / "data"
    with pytest.raises(InputError, match=reason) as caught:
        fetch("refcoco", root, sources, patience=PATIENCE)
    assert "refcoco.zip is refused" in str(caught.value)
    assert names(tmp_path) == ["data", "s.yaml"]
    assert names(root) == ["downloads"]
    assert not (root / "downloads" / "refcoco.zip.done.json").exists()


def test_an_archive_cannot_write_outside_its_folder_or_grow_beyond_its_limit(server, tmp_path):
    body = zipped({**REFCOCO, "images/train2014/replaced.jpg": b"x"})
    sources = listing(tmp_path / "s.yaml", refcoco=about([file_entry(server, "refcoco.zip", body)]))
    fetch("refcoco", tmp_path / "data", sources, patience=PATIENCE)
    assert names(tmp_path / "data") == ["downloads", "refcoco"]
    entry = file_entry(server, "refcoco.zip", body, unpacked_limit=4000)
    sources = listing(tmp_path / "s.yaml", refcoco=about([entry]))
    with pytest.raises(InputError, match=r"largest is 'refcoco/refs\(unc\)\.p', but at most 4000"):
        fetch("refcoco", tmp_path / "other", sources, patience=PATIENCE)


def test_an_archive_without_the_expected_files_is_named(server, tmp_path):
    body = zipped({"refcoco/instances.json": b"{}"})
    sources = listing(tmp_path / "s.yaml", refcoco=about([file_entry(server, "refcoco.zip", body)]))
    with pytest.raises(InputError, match=r"refcoco/refs\(unc\)\.p did not come out of it"):
        fetch("refcoco", tmp_path / "data", sources, patience=PATIENCE)


def test_only_one_fetch_works_in_a_folder(tmp_path, sources):
    from filelock import FileLock

    (tmp_path / "downloads").mkdir()
    with (
        FileLock(tmp_path / "downloads" / ".lock"),
        pytest.raises(InputError, match="another fetch is at work"),
    ):
        fetch("refcoco", tmp_path, sources, patience=PATIENCE)


def test_a_root_that_cannot_be_written_is_named(tmp_path, sources):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write below .*file"):
        fetch("refcoco", tmp_path / "file", sources, patience=PATIENCE)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"no source for data set 'refclef'; .*refcoco, refcoco\+, refcocog"):
        fetch("refclef", tmp_path)
    with pytest.raises(InputError, match="promptris refshapes DIR"):
        fetch("refshapes", tmp_path)


# ---------------------------------------------------------------------------------------------- the list of sources


def test_the_shipped_list_is_complete():
    sources = read_sources()
    assert set(sources) == {"coco-train2014", "refcoco", "refcoco+", "refcocog", "grefcoco"}
    for name, source in sources.items():
        assert source.about and source.homepage.startswith("https://") and source.licence
        assert source.images == (None if name == "coco-train2014" else "coco-train2014")
        for file in source.files:
            assert file.remote.urls
            assert file.gives.files or (file.gives.folders and file.gives.count)
            assert file.published == (name != "grefcoco")
            if file.published:
                assert file.remote.size and file.remote.hashes["sha256"] and file.published_at
    images = sources["coco-train2014"].files[0]
    assert (images.remote.size, images.gives.count) == (13_510_573_713, 82_783)
    assert images.remote.hashes["md5"] == "0da8c0bd3d6becc4dcb32757491aca88"
    assert images.unpacked_limit > images.remote.size
    assert set(images.gives.folders) == set(IMAGE_FOLDERS)
    for name in ("refcoco", "refcoco+", "refcocog"):
        (file,) = sources[name].files
        assert {f"{name}/instances.json", f"{name}/refs({DEFAULT_SPLIT_BY[name]}).p"} <= set(file.gives.files)
        assert (file.unpack_to, file.top_folder) == (".", name)
    placed = [file.place_at for file in sources["grefcoco"].files]
    assert placed == ["grefcoco/grefs(unc).json", "grefcoco/instances.json"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"urls": ["ftp://host/x"]}, "is not a list of http or https addresses"),
        ({"urls": ["file:///etc/passwd"]}, "is not a list of http or https addresses"),
        ({"urls": []}, "is not a list of http"),
        ({"sha256": "abc"}, "sha256 'abc' does not have 64 hex digits"),
        ({"size": -1}, "size -1 is not a number"),
        ({"size": "13 GB"}, "size '13 GB' is not a number"),
        ({"md5": "absent"}, "has no field 'md5'"),
        ({"sha265": "x"}, "unknown field 'sha265'"),
        ({"name": "../x.zip"}, "name '../x.zip' may only have"),
        ({"name": ".lock"}, "may only have"),
        ({"unpack_to": "/tmp"}, "unpack_to '/tmp' is not a path below the data root"),
        ({"unpack_to": "../other"}, "is not a path below the data root"),
        ({"gives": ["../x"]}, "has a path that is not below"),
        ({"gives": []}, "is not a mapping"),
        ({"place_at": "x"}, "either unpack_to"),
        ({"unpack_to": "absent"}, "either unpack_to"),
        ({"verified": "maybe"}, "is neither published nor unknown"),
        ({"verified": "published"}, "needs a size, a hash and published_at"),
    ],
)
def test_a_wrong_entry_is_named_by_file_entry_and_field(server, tmp_path, changes, reason):
    entry = file_entry(server, "refcoco.zip", b"", size=1) | changes
    entry = {key: value for key, value in entry.items() if value != "absent"}
    path = listing(tmp_path / "mine.yaml", mine=about([entry]))
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        read_sources(path)
    assert str(caught.value).startswith(f"{path}, mine, file 1")


def test_a_wrong_list_is_named(server, tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(InputError, match=r"cannot read the list of sources .*mine\.yaml"):
        read_sources(path)
    for text, reason in (
        ("a: [", "is not YAML"),
        ("- a", "is not a mapping"),
        ("a: 1", "a is not a mapping"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            read_sources(path)
    entry = file_entry(server, "a.zip", b"", size=1)
    with pytest.raises(InputError, match="images names 'nowhere'"):
        read_sources(listing(path, a=about([entry], images="nowhere")))
    with pytest.raises(InputError, match=r"a and b both have a file 'a\.zip'"):
        read_sources(listing(path, a=about([entry]), b=about([entry])))
    with pytest.raises(InputError, match=r"a: files \[\] is not a list"):
        read_sources(listing(path, a=about([])))
