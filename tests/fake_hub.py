"""A hub on this machine that speaks what huggingface_hub says to the real one when a model goes up or down."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN, READ_TOKEN = "hf_writes", "hf_reads"
OWNER = "me"


@dataclass
class Repository:
    """One model: visibility, and the files of every commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """What the main branch holds."""
        return self.commits[self.branches["main"]]


class FakeHub(ThreadingHTTPServer):
    """`with FakeHub() as hub`: listens at `hub.address` until the block ends; `hub.asked` lists all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.models: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append(f"{self.command} /{path}")
        match path.split("/"):
            case ["api", "validate-yaml"]:
                self._validate(json.loads(body)["content"])
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", owner, name, "preupload", "main"]:
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._json({"files": modes})
            case ["api", "models", owner, name, "commit", "main"]:
                self._commit(f"{owner}/{name}", body)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                objects = [
                    {
                        **wanted,
                        "actions": {"upload": {"href": f"{self.server.address}/large/{wanted['oid']}"}},
                    }
                    for wanted in json.loads(body)["objects"]
                ]
                self._json({"transfer": "basic", "objects": objects})
            case ["large", oid] if hashlib.sha256(body).hexdigest() == oid:
                self.server.large[oid] = body
                self._send(200)
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self._info(f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", revision]:
                if files := self._files(f"{owner}/{name}", revision):
                    self._json([_entry(path, content) for path, content in files.items()])
            case [owner, name, "resolve", revision, file]:
                if files := self._files(f"{owner}/{name}", revision):
                    commit = {"X-Repo-Commit": revision, "ETag": f'"{_entry(file, files[file])["oid"]}"'}
                    self._send(200, files[file], **commit)
            case _:
                self._error(404, "EntryNotFound", f"no such address: {path}")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _validate(self, card: str) -> None:
        head = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
        faults = (
            [] if isinstance(head.get("license", ""), str) else [{"message": '"license" must be a string'}]
        )
        self._json({"errors": faults, "warnings": []}, 400 if faults else 200)

    def _create(self, wanted: dict[str, Any]) -> None:
        owner = wanted["organization"] or OWNER
        name = f"{owner}/{wanted['name']}"
        if self._token() not in (TOKEN, READ_TOKEN):
            self._error(401, "", "Invalid username or password.")
        elif owner != OWNER or self._token() != TOKEN:
            self._error(403, "", "You don't have the rights to create a model under this namespace")
        elif name in self.server.models:
            self._json(
                {"url": f"{self.server.address}/{name}", "error": "You already created this model repo"}, 409
            )
        else:
            self.server.models[name] = Repository(wanted.get("visibility") == "private")
            self._json({"url": f"{self.server.address}/{name}"})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.server.models[name]
        files = dict(repository.files) if repository.commits else {}
        for line in body.splitlines():
            item = json.loads(line)
            match item["key"], item["value"]:
                case "header", value:
                    repository.messages.append(value["summary"])
                case "file", value:
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile", value:
                    files[value["path"]] = self.server.large[value["oid"]]
        commit = hashlib.sha1(body + str(len(repository.commits)).encode()).hexdigest()
        repository.commits[commit] = files
        repository.branches["main"] = commit
        self._json(
            {
                "commitUrl": f"{self.server.address}/{name}/commit/{commit}",
                "commitOid": commit,
                "success": True,
            }
        )

    def _info(self, name: str, revision: str) -> None:
        repository = self.server.models.get(name)
        if repository is not None and not repository.commits:  # made a moment ago
            self._json({"id": name, "private": repository.private})
        elif files := self._files(name, revision):
            assert repository is not None
            sha = repository.branches.get(revision, revision)
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Files at a revision; None, once the client has been told why, when it may not see them."""
        repository = self.server.models.get(name)
        if repository is None or (repository.private and self._token() is None):
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        files = repository.commits.get(repository.branches.get(revision, revision))
        if files is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), **headers)

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
