"""A Hugging Face hub on this machine: folders served as repositories, requests recorded.

It answers what huggingface_hub asks for when it downloads and uploads, as huggingface.co does
(statuses, error headers, large files by another host), and nothing else yet. A new kind of request
is a method and a line in `ROUTES` or `UPLOADS`.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

# What the real hub keeps in git LFS, and serves from another host.
LARGE = {".safetensors", ".bin", ".pth", ".gguf", ".onnx"}


class Refused(Exception):
    """An error as an answer, with the header by which huggingface_hub tells them apart."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `token` is what its Authorization header bears."""

    method: str
    host: str
    path: str
    token: str | None
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Answer:
    """Content, of a repository's file if it is named, with headers and status."""

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    file: str | None = None


@dataclass
class Repository:
    """A model repository: the folder of each commit, and who may read it."""

    name: str
    private: bool
    gated: bool
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Path] = field(default_factory=dict)

    def commit(self, revision: str) -> str:
        if revision in self.commits:
            return revision
        if revision not in self.revisions:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.revisions[revision]

    def paths(self, commit: str) -> dict[str, Path]:
        folder = self.commits[commit]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path for path in files}


class FakeHub:
    """What is served and what was asked.

    Attributes:
      endpoint: Address of the hub.
      storage: Address of the other host, which serves large files and must be shown no token.
      tokens: The valid tokens, each with the private and gated repositories that it opens.
      outage: A status with which every request is refused.
      requests: Every request, in order.
      sent: Bytes of content sent, by file.
      refused_uploads: The other host takes no large file.
      messages: Of each commit that was uploaded: (repository, revision, message).
    """

    def __init__(self, port: int, uploads: Path) -> None:
        self.endpoint, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.tokens: dict[str, set[str]] = {}
        self.outage: int | None = None
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.messages: list[tuple[str, str, str]] = []
        self.refused_uploads = False
        self._uploads = uploads
        self._large: dict[str, bytes] = {}
        self._repositories: dict[str, Repository] = {}

    def add(
        self,
        name: str,
        folder: Path,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> None:
        """Serve a folder as a repository's newest commit; the older ones stay."""
        new = Repository(name, private, gated)
        repository = self._repositories.setdefault(name, new)
        commit = hashlib.sha1(f"{name} {folder}".encode()).hexdigest()
        repository.revisions[revision] = commit
        repository.commits[commit] = folder

    def forget(self) -> None:
        """Count anew."""
        self.requests.clear()
        self.sent.clear()

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        try:
            answer = self._find(request)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code is not None:
                headers["X-Error-Code"] = refused.code
            return Answer(json.dumps({"error": refused.message}).encode(), headers, refused.status)
        if answer.file is not None and request.method == "GET":
            self.sent[answer.file] += len(answer.content)
        return answer

    def _find(self, request: Request) -> Answer:
        if self.outage is not None:
            raise Refused(self.outage, "The hub is down.")
        path = urlsplit(request.path).path
        uploads = request.method in ("POST", "PUT")
        for pattern, method in UPLOADS if uploads else ROUTES:
            if found := re.fullmatch(pattern, path):
                words = {key: unquote(word) for key, word in found.groupdict().items()}
                return method(self, request if uploads else request.token, **words)
        raise Refused(404, "Not found")

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        repository = self._repositories[name]
        paths = repository.paths(repository.commit(revision))
        return {file: path.read_bytes() for file, path in paths.items()}

    def is_private(self, name: str) -> bool:
        return self._repositories[name].private

    def _create(self, request: Request) -> Answer:
        """A new repository of the token's; one that is there is 409, which `exist_ok` takes."""
        asked = json.loads(request.body)
        name = f"{asked['organization'] or 'owner'}/{asked['name']}"
        if request.token not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        if name in self._repositories:
            self._open(name, request.token)
            content = {"url": f"{self.endpoint}/{name}", "name": name}
            return Answer(json.dumps(content).encode(), {}, 409)
        if asked["organization"] not in (None, "owner"):
            raise Refused(403, "You don't have the rights to create a model under this namespace")
        self.tokens[request.token].add(name)
        empty = self._uploads / f"empty-{len(self._repositories)}"
        empty.mkdir()
        self.add(name, empty, private=asked.get("visibility") == "private")
        return _as_json({"url": f"{self.endpoint}/{name}", "name": name})

    def _validate(self, request: Request) -> Answer:
        return _as_json({"errors": [], "warnings": []})

    def _preupload(self, request: Request, name: str, revision: str) -> Answer:
        """Which files go to the other host."""
        self._writable(name, request.token)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if Path(file["path"]).suffix in LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(request.body)["files"]
        ]
        return _as_json({"files": modes})

    def _batch(self, request: Request, name: str) -> Answer:
        """Signed addresses of the other host for large files."""
        self._writable(name, request.token)
        objects = [
            {
                **{key: held[key] for key in ("oid", "size")},
                "actions": {"upload": {"href": f"{self.storage}/upload/{held['oid']}"}},
            }
            for held in json.loads(request.body)["objects"]
        ]
        return _as_json({"transfer": "basic", "objects": objects})

    def _upload(self, request: Request, digest: str) -> Answer:
        if self.refused_uploads or hashlib.sha256(request.body).hexdigest() != digest:
            raise Refused(400, "The content is not that of the digest")
        self._large[digest] = request.body
        return Answer(b"")

    def _commit(self, request: Request, name: str, revision: str) -> Answer:
        """A new commit over the last one of the branch, or a pull request."""
        repository = self._writable(name, request.token)
        folder = self._uploads / f"commit-{len(self.messages)}"
        folder.mkdir()
        for file, content in self.files(name, revision).items():
            (folder / file).write_bytes(content)
        pull = "create_pr=1" in urlsplit(request.path).query
        branch = f"refs/pr/{len(self.messages) + 1}" if pull else revision
        for line in map(json.loads, request.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append((name, branch, value["summary"]))
            elif line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).write_bytes(self._large[value["oid"]])
        self.add(name, folder, branch, repository.private, repository.gated)
        commit = repository.commit(branch)
        address = f"{self.endpoint}/{name}"
        said = {"commitUrl": f"{address}/commit/{commit}", "commitOid": commit}
        return _as_json(said | ({"pullRequestUrl": f"{address}/discussions/1"} if pull else {}))

    def _writable(self, name: str, token: str | None) -> Repository:
        repository = self._open(name, token)
        if not self._opens(token, name):
            raise Refused(403, "You don't have the rights to write to this repository")
        return repository

    def _info(self, token: str | None, name: str, revision: str) -> Answer:
        repository = self._open(name, token)
        commit = repository.commit(revision)
        siblings = [{"rfilename": file} for file in repository.paths(commit)]
        return _as_json({"id": name, "sha": commit, "siblings": siblings})

    def _tree(self, token: str | None, name: str, revision: str) -> Answer:
        """The listing; of a gated repository too, as its page shows it to everyone."""
        repository = self._open(name, token)
        entries = []
        for file, path in repository.paths(repository.commit(revision)).items():
            size, digest = path.stat().st_size, _digest(path)
            entry = {"type": "file", "path": file, "size": size, "oid": digest[:40]}
            if path.suffix in LARGE:
                entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
            entries.append(entry)
        return _as_json(entries)

    def _file(self, token: str | None, name: str, revision: str, file: str) -> Answer:
        repository = self._open(name, token)
        if repository.gated and not self._opens(token, name):
            raise Refused(403 if token else 401, f"Access to {name} is restricted.", "GatedRepo")
        commit = repository.commit(revision)
        path = repository.paths(commit).get(file)
        if path is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(path)}"'}
        if path.suffix not in LARGE:
            return Answer(path.read_bytes(), headers, file=file)
        headers["X-Linked-ETag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(path.stat().st_size)
        headers["Location"] = f"{self.storage}/storage/{name}/{commit}/{file}"
        return Answer(b"", headers, 302)

    def _stored(self, token: str | None, name: str, commit: str, file: str) -> Answer:
        """A large file: the address alone is the permission, as with signed ones."""
        path = self._repositories[name].paths(commit)[file]
        return Answer(path.read_bytes(), file=file)

    def _open(self, name: str, token: str | None) -> Repository:
        """The repository, unless it is missing or, what looks the same, not for this token."""
        if token is not None and token not in self.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        repository = self._repositories.get(name)
        if repository is None or (repository.private and not self._opens(token, name)):
            if token is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repository

    def _opens(self, token: str | None, name: str) -> bool:
        return token is not None and name in self.tokens[token]


NAME = r"(?P<name>[^/]+(/[^/]+)?)"
ROUTES = (
    (rf"/api/models/{NAME}/revision/(?P<revision>[^/]+)", FakeHub._info),
    (rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)", FakeHub._tree),
    (rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", FakeHub._file),
    (rf"/storage/{NAME}/(?P<commit>[0-9a-f]{{40}})/(?P<file>.+)", FakeHub._stored),
)
UPLOADS = (
    ("/api/repos/create", FakeHub._create),
    ("/api/validate-yaml", FakeHub._validate),
    (rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", FakeHub._preupload),
    (rf"/{NAME}\.git/info/lfs/objects/batch", FakeHub._batch),
    (r"/upload/(?P<digest>[0-9a-f]{64})", FakeHub._upload),
    (rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)", FakeHub._commit),
)


def _as_json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), {"Content-Type": "application/json"})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Server(ThreadingHTTPServer):
    """The server of both hosts, with its hub."""

    def __init__(self, uploads: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = FakeHub(self.server_port, uploads)


class _Handler(BaseHTTPRequestHandler):
    """One request to the server's hub; HTTP 1.0, so that no connection outlives the server."""

    server: _Server

    def do_GET(self) -> None:
        bearer = self.headers["Authorization"]
        token = None if bearer is None else bearer.removeprefix("Bearer ")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        request = Request(self.command, self.headers["Host"], self.path, token, body)
        answer = self.server.hub.answer(request)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are recorded, not printed."""


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    """A hub on a free port of this machine, until the `with` statement ends."""
    with TemporaryDirectory() as uploads, _Server(Path(uploads)) as server:
        # The interval is how long the end of the `with` statement may take, in seconds.
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server.hub
        finally:
            server.shutdown()
            thread.join()
