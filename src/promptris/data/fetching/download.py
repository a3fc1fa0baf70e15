"""One file over HTTP: resumed where it stopped, never longer than promised, compared with its hashes."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import certifi

from promptris.data.fetching.archives import free_bytes
from promptris.errors import InputError

# Where neither the list of sources nor the server says how long a file is, something must end it.
UNSIZED_LIMIT = 2 << 30
_CHUNK = 1 << 20
_BETWEEN_REPORTS = 0.1
_NUMBER = r"[0-9]{1,18}"
_CONTENT_RANGE = re.compile(rf"bytes (?:({_NUMBER})-{_NUMBER}|\*)/({_NUMBER}|\*)")
_COME_BACK_LATER = (408, 425, 429, 500, 502, 503, 504)
# Where the first contact fails like this, waiting a minute for the same answer helps nobody.
_HOPELESS = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)


@dataclass(frozen=True)
class RemoteFile:
    """What to get: `urls` are tried in order; size in bytes and hashes (by name, hex digits) where known."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server: seconds without a byte, tries without progress, seconds between tries.

    The wait doubles from `first_wait` to `longest_wait`; a server may ask for more, up to `longest_wait`.
    """

    timeout: float = 60.0
    retries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0


@dataclass(frozen=True)
class FetchProgress:
    """Where a file is: bytes `done` of `total` (None if unknown), and a `note` when something happened.

    stage: "download", "verify" or "unpack".
    """

    file: str
    stage: str
    done: int
    total: int | None
    note: str = ""


@dataclass(frozen=True)
class Download:
    """A whole file: received bytes of this run, the byte it was continued at, and what was compared.

    checked: names of the hashes that were right, or ("size",), or () where nothing is known about the file.
    url: None if the file was there before.
    """

    path: Path
    url: str | None
    received: int
    resumed_from: int
    checked: tuple[str, ...]


ProgressCallback = Callable[[FetchProgress], None]


def download(
    wanted: RemoteFile,
    folder: str | Path,
    *,
    patience: Patience | None = None,
    progress: ProgressCallback | None = None,
) -> Download:
    """Bring a file to `folder`/name, or find it there.

    It grows as name.part, which stays when the run ends early, beside a small name.part.json that remembers
    the address and the version of the file. The next run asks for the rest by Range and If-Range; a server
    that does not know ranges, or has another version by now, starts it again. Dropped connections are tried
    again from where they stopped. A file with a wrong size or hash becomes name.wrong.

    InputError with one sentence that names the file, each address and what was wrong with it, or that the
    disk has no room.
    """
    transfer = _Transfer(wanted, Path(folder), patience or Patience(), progress or (lambda _: None))
    try:
        return transfer.run()
    except OSError as error:
        raise InputError(f"cannot write {wanted.name} in {folder}: {error}") from error


class _RetryError(Exception):
    """Something that may go better next time; `after`: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _RefusedError(Exception):
    """This address is of no use; the text continues a sentence that begins with the address."""


@dataclass(frozen=True)
class _Memory:
    """What the .part belongs to."""

    url: str
    etag: str | None
    last_modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """For If-Range, which needs a strong tag."""
        return self.last_modified if self.etag is None or self.etag.startswith("W/") else self.etag


class _Transfer:
    def __init__(
        self, wanted: RemoteFile, folder: Path, patience: Patience, report: ProgressCallback
    ) -> None:
        self.wanted, self.patience, self.report = wanted, patience, report
        self.final = folder / wanted.name
        self.part = folder / f"{wanted.name}.part"
        self.memory_file = folder / f"{wanted.name}.part.json"
        self.wrong = folder / f"{wanted.name}.wrong"
        self.opener = _http_opener()
        self.received = self.resumed_from = 0

    def run(self) -> Download:
        self.final.parent.mkdir(parents=True, exist_ok=True)
        if self.final.is_file():
            try:
                return Download(self.final, None, 0, 0, self.verify(self.final))
            except _RefusedError as error:
                self.final.replace(self.wrong)
                self.note(f"the file that was there {error}; it is {self.wrong.name} now")
        failures = []
        for url in self.wanted.urls:
            try:
                self.get_all(url)
            except _RefusedError as error:
                failures.append(f"{url} {error}")
                self.note(failures[-1])
                continue
            try:
                checked = self.verify(self.part)
            except _RefusedError as error:
                self.part.replace(self.wrong)
                self.forget()
                failures.append(f"{url} sent a file that {error} (it is {self.wrong.name} now)")
                self.note(failures[-1])
                continue
            self.part.replace(self.final)
            self.forget()
            return Download(self.final, url, self.received, self.resumed_from, checked)
        raise InputError(
            f"{self.wanted.name} could not be downloaded: {'; '.join(failures)}; run the same command again to try "
            f"again, or put the file at {self.final} yourself"
        )

    def get_all(self, url: str) -> None:
        """Fill the .part from one address, with as many requests as it takes."""
        furthest, tries, before = self.have(), 0, self.received
        while True:
            try:
                self.request(url, first=self.received == before)
                return
            except _RetryError as error:
                # Only new ground counts: a server that always restarts and always stops is given up.
                if self.have() > furthest:
                    furthest, tries = self.have(), 0
                tries += 1
                if tries > self.patience.retries:
                    raise _RefusedError(f"{error} ({tries} tries)") from error
                wait = max(self.patience.first_wait * 2 ** (tries - 1), error.after)
                wait = min(wait, self.patience.longest_wait)
                self.note(f"{url} {error}; trying again in {wait:.0f} s ({tries} of {self.patience.retries})")
                time.sleep(wait)

    def request(self, url: str, *, first: bool) -> None:
        """One request for what is missing; returns when the .part is whole."""
        memory = self.remembered()
        same = memory if memory is not None and memory.url == url else None
        size = self.wanted.size or (same.total if same else None)
        have = self.have()
        if have and (not self.may_continue(same) or (size is not None and have > size)):
            self.forget()
            have, same = 0, None
        if have and have == size:
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "promptris"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if same is not None and same.validator is not None:
                headers["If-Range"] = same.validator
        try:
            response = self.opener.open(
                urllib.request.Request(url, headers=headers), timeout=self.patience.timeout
            )
        except urllib.error.HTTPError as error:
            with error:
                self.bad_status(error, have, size)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ValueError) or (first and isinstance(reason, _HOPELESS)):
                raise _RefusedError(f"could not be reached ({reason})") from error
            raise _RetryError(f"could not be reached ({reason})") from error
        with response:
            self.receive(url, response, have, same)

    def bad_status(self, error: urllib.error.HTTPError, have: int, size: int | None) -> None:
        if error.code == 416 and have:
            total = _content_range(error.headers.get("Content-Range"))[1]
            if total == have and size in (None, have):
                return
            self.forget()
            raise _RetryError(f"has no byte {have} to continue at")
        reason = f"answered {error.code} {error.reason}"
        if error.code in _COME_BACK_LATER:
            raise _RetryError(reason, float(_number(error.headers.get("Retry-After")) or 0))
        raise _RefusedError(reason)

    def receive(self, url: str, response: http.client.HTTPResponse, have: int, same: _Memory | None) -> None:
        """Check what the answer promises, then write its body."""
        headers = response.headers
        if headers.get_content_type() == "text/html":
            raise _RefusedError("sent a web page instead of the file")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise _RefusedError(
                f"sent the file encoded as {headers['Content-Encoding']}, which was not asked"
            )
        length = _number(headers.get("Content-Length"))
        memory = _Memory(url, headers.get("ETag"), headers.get("Last-Modified"), length)
        start = 0
        if response.status == 206 and have:
            start, total = self.continued(headers.get("Content-Range"), have, length, memory, same)
            etag = memory.etag or (same.etag if same else None)
            changed_at = memory.last_modified or (same.last_modified if same else None)
            memory = _Memory(url, etag, changed_at, total)
        elif response.status != 200:
            raise _RefusedError(f"answered {response.status} {response.reason}")
        elif have:
            self.note(f"{url} starts again from the beginning: it does not continue this file")
        size = self.wanted.size
        if size is not None and memory.total not in (None, size):
            raise _RefusedError(f"offers {memory.total} bytes, but {size} are expected")
        end = size if size is not None else memory.total
        if end is not None and end - have > (free := free_bytes(self.part.parent)):
            raise InputError(
                f"{self.wanted.name} needs {end - have} more bytes in {self.part.parent}, but only {free} are free "
                "there; make room and run again"
            )
        if start == 0:
            self.part.unlink(missing_ok=True)
            self.resumed_from = 0
        elif not self.received:
            self.resumed_from = start
        self.remember(memory)
        self.write_body(response, start, end, None if length is None else start + length)

    def continued(
        self,
        content_range: str | None,
        have: int,
        length: int | None,
        memory: _Memory,
        same: _Memory | None,
    ) -> tuple[int, int | None]:
        """The first byte of a 206 answer and the size of the whole file."""
        start, total = _content_range(content_range)
        if total is None and length is not None:
            total = have + length
        changed = same is not None and (
            (same.etag and memory.etag and same.etag != memory.etag)
            or (same.total and total and same.total != total)
        )
        if start != have or changed:
            self.forget()
            raise _RetryError("has another version of the file by now" if changed else "sent another part")
        return have, total

    def write_body(
        self, response: http.client.HTTPResponse, start: int, end: int | None, promised: int | None
    ) -> None:
        """Append the body. end: size of the whole file; promised: byte at which this answer ends."""
        limit = UNSIZED_LIMIT if end is None else end
        stop = limit if promised is None else min(limit, promised)
        position, last_report = start, 0.0
        with self.part.open("ab") as out:
            while promised is None or position < stop:
                # Without a promised length only one byte too many shows that there is no end.
                chunk = self.read(response, min(_CHUNK, stop - position + (promised is None)), position, end)
                if not chunk:
                    break
                if position + len(chunk) > stop:
                    self.give_up_part(out)
                    raise _RefusedError(f"sends more than the {stop} bytes that {self.limit_owner(end)}")
                out.write(chunk)
                position += len(chunk)
                self.received += len(chunk)
                if time.monotonic() - last_report > _BETWEEN_REPORTS:
                    last_report = time.monotonic()
                    self.tell("download", position, end)
        self.tell("download", position, end)
        if position < max(end or 0, promised or 0):
            # A last chunk of length 0 says that this was all; otherwise the connection was lost.
            if promised is None and response.chunked:
                self.forget()
                raise _RefusedError(f"sent {position} bytes, but {end} are expected")
            raise _RetryError(f"stopped after {position} of {end or promised} bytes")
        if position == 0:
            raise _RefusedError("sent an empty file")

    def read(self, response: http.client.HTTPResponse, count: int, position: int, end: int | None) -> bytes:
        try:
            return response.read1(count)
        except (OSError, http.client.HTTPException) as error:
            of_all = "" if end is None else f" of {end}"
            raise _RetryError(f"dropped the connection after {position}{of_all} bytes") from error

    def give_up_part(self, out: IO[bytes]) -> None:
        out.close()
        self.forget()

    def limit_owner(self, end: int | None) -> str:
        if self.wanted.size is not None:
            return "are expected"
        return (
            "are allowed where no size is known; put its size into the list of sources"
            if end is None
            else "it promised"
        )

    def verify(self, path: Path) -> tuple[str, ...]:
        """The names of what was compared; _RefusedError says what differs."""
        size = path.stat().st_size
        if self.wanted.size is not None and size != self.wanted.size:
            raise _RefusedError(f"has {size} bytes, but {self.wanted.size} are expected")
        if not self.wanted.hashes:
            return () if self.wanted.size is None else ("size",)
        digests = {name: hashlib.new(name, usedforsecurity=False) for name in self.wanted.hashes}
        done, last_report = 0, 0.0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                for digest in digests.values():
                    digest.update(chunk)
                done += len(chunk)
                if time.monotonic() - last_report > _BETWEEN_REPORTS or done == size:
                    last_report = time.monotonic()
                    self.tell("verify", done, size)
        for name, published in self.wanted.hashes.items():
            found = digests[name].hexdigest()
            if found != published.lower():
                raise _RefusedError(f"has the {name} {found}, but {published} is published")
        return tuple(digests)

    def have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def may_continue(self, same: _Memory | None) -> bool:
        """Without a hash to tell at the end, only the same version at the same address may be continued."""
        if self.wanted.hashes:
            return True
        return same is not None and (same.validator is not None or same.total is not None)

    def remembered(self) -> _Memory | None:
        try:
            return _Memory(**json.loads(self.memory_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def remember(self, memory: _Memory) -> None:
        fresh = self.memory_file.with_name(f"{self.memory_file.name}.new")
        fresh.write_text(json.dumps(asdict(memory)), encoding="utf-8")
        fresh.replace(self.memory_file)

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.memory_file.unlink(missing_ok=True)

    def tell(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.report(FetchProgress(self.wanted.name, stage, done, total, note))

    def note(self, text: str) -> None:
        self.tell("download", self.have(), self.wanted.size, text)


def _number(header: str | None) -> int | None:
    """The number in a header; None for what is none, such as a date, or the length of no possible file."""
    text = (header or "").strip()
    return int(text) if re.fullmatch(_NUMBER, text) else None


def _content_range(header: str | None) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) of a Content-Range header; None for what it does not say."""
    match = _CONTENT_RANGE.fullmatch((header or "").strip())
    if match is None:
        return None, None
    first, total = match.groups()
    return None if first is None else int(first), None if total == "*" else int(total)


class _StaySecure(urllib.request.HTTPRedirectHandler):
    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.HTTPError(newurl, code, "a redirect to an insecure address", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _http_opener() -> urllib.request.OpenerDirector:
    """http and https only: the default one would open files and ftp, which a list of sources must not."""
    context = ssl.create_default_context()
    # Some builds of Python come without the system's certificates.
    context.load_verify_locations(certifi.where())
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        _StaySecure(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
