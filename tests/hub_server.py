"""A local Hub server with the API of huggingface_hub 2.4 and injectable faults.

The client is not modified: conftest.py sets HF_ENDPOINT and HF_HUB_DISABLE_XET before the import. The server checks
tokens and their roles, sha256 and size of every upload, and parents of commits, as the Hub does. test_hub_server.py
tests it with huggingface_hub and datasets.
"""

import base64
import hashlib
import json
import random
import re
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import LFS_SUFFIXES, Fault, File, HubError, Repository, folder_entry, git_oid, read_front_matter

REPO = r"(?P<name>[\w.-]+(?:/[\w.-]+)?)"
API = r"/api/(?P<kind>model|dataset|space)s/" + REPO
GIT = r"/(?:(?P<kind>dataset|space)s/)?" + REPO


class HubServer(ThreadingHTTPServer):
    """Start with `start()`; `url` is HF_ENDPOINT. `reset()` removes all repositories, tokens and faults."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.RLock()
        self.reset()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def start(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def reset(self):
        with self.lock:
            self.repositories, self.lfs, self.tokens, self.uploads = {}, {}, {}, {}
            self.requests, self.faults, self.failure_rate, self.random = [], [], 0.0, random.Random(0)
            self.failed = 0

    def add_token(self, token, role="write", name="someone", permissions=()):
        """Add a token of the user `name` with the role write, read or fineGrained."""
        self.tokens[token] = {"role": role, "name": name, "permissions": list(permissions)}

    def add_repository(self, name, files=(), kind="model", private=False):
        """Add a repository with `files`, {path: bytes}."""
        repository = self.repositories[kind, name] = Repository(name, kind, private)
        if files:
            repository.commit("main", "files", dict(files))
        return repository

    def fail(self, kind, where="", times=1, **more):
        self.faults.append(Fault(kind, where, times, **more))

    def fail_randomly(self, rate, seed=0):
        """Let requests fail at a rate of 0 to 1, with one of four faults."""
        self.failure_rate, self.random = rate, random.Random(seed)

    def fault_for(self, request):
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times != 0 and re.search(fault.where, request):
                    fault.times = None if fault.times is None else fault.times - 1
                    self.failed += 1
                    return fault
            if self.random.random() < self.failure_rate:
                self.failed += 1
                return Fault(self.random.choice(["drop", "lost", 500, 503]))
        return None

    def handle_error(self, request, client_address):
        """Do not print the traceback of a dropped connection."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        """Do not log to the terminal."""

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        fault = self.server.fault_for(f"{self.command} {path}")
        if fault is not None and fault.kind == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self.hang_up()
        self.body, self.corrupt = self.read_body(), fault is not None and fault.kind == "sha"
        if fault is not None and isinstance(fault.kind, int):
            response = self.error(HubError(fault.kind, fault.message), fault.headers)
        else:
            response = self.route(path)
        if fault is not None and fault.kind == "late":
            threading.Event().wait(fault.seconds)
        return self.hang_up() if fault is not None and fault.kind == "lost" else self.send(*response)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def route(self, path):
        try:
            with self.server.lock:
                for method, pattern, serve in ROUTES:
                    if method in (self.command, "GET" if self.command == "HEAD" else "") and (
                        matched := re.fullmatch(pattern, path)
                    ):
                        return serve(self, **{key: value or "" for key, value in matched.groupdict().items()})
            raise HubError(404, f"{self.command} {path} is not served")
        except HubError as error:
            return self.error(error)

    def send(self, status, headers, content):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": headers.get("Content-Length", len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def json(content, status=200):
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def error(self, error, headers=()):
        details = {"X-Error-Message": error.message, **({"X-Error-Code": error.code} if error.code else {})}
        status, base, content = self.json({"error": error.message}, error.status)
        return status, {**base, **details, **dict(headers)}, content

    def account(self):
        """Return the sender's account, or None without a token; HubError 401 for an unknown token."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        if (account := self.server.tokens.get(given.removeprefix("Bearer "))) is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return account

    def repository(self, kind, name):
        """Return a repository that the sender may read; a private one does not exist for other users."""
        account, repository = self.account(), self.server.repositories.get((kind or "model", name))
        if repository is None or (repository.private and (account is None or account["name"] != name.split("/")[0])):
            raise HubError(401 if account is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def check_write(self, name):
        account = self.account()
        if account is None:
            raise HubError(401, "Invalid username or password.")
        writes = account["role"] == "write" or "repo.write" in account["permissions"]
        if not writes or account["name"] != name.split("/")[0]:
            raise HubError(403, f"You don't have the rights to write to {name}")
        return account

    def writable(self, kind, name):
        repository = self.repository(kind, name)
        self.check_write(name)
        return repository

    # accounts and repositories

    def whoami(self):
        account = self.account()
        if account is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "a token", "role": account["role"]}
        if account["role"] == "fineGrained":
            entity = {"type": "user", "name": account["name"]}
            token["fineGrained"] = {
                "global": [],
                "scoped": [{"entity": entity, "permissions": account["permissions"]}],
            }
        auth = {"type": "access_token", "accessToken": token}
        return self.json({"type": "user", "name": account["name"], "orgs": [], "auth": auth})

    def create(self):
        request = json.loads(self.body)
        owner = request.get("organization") or (self.account() or {}).get("name", "")
        name, kind = f"{owner}/{request['name']}", request.get("type", "model")
        self.check_write(name)
        url = f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.server.repositories:
            return self.json({"error": "You already created this repo", "url": url}, 409)
        private = request.get("visibility") == "private" or bool(request.get("private"))
        self.server.add_repository(name, kind=kind, private=private)
        return self.json({"url": url, "name": name, "id": "1"})

    def settings(self, kind, name):
        self.writable(kind, name).private = json.loads(self.body)["visibility"] == "private"
        return self.json({})

    def validate_yaml(self):
        try:
            read_front_matter(json.loads(self.body)["content"])
        except HubError as error:
            return self.json({"errors": [{"message": error.message}], "warnings": []}, 400)
        return self.json({"errors": [], "warnings": []})

    # uploads

    def preupload(self, kind, name, revision):
        commit, entries = self.writable(kind, name).resolve(revision), []
        for requested in json.loads(self.body)["files"]:
            path = requested["path"]
            oid = commit.files[path].etag if path in commit.files else None
            if self.corrupt:  # claims that a file within its sample exists already
                oid = git_oid(base64.b64decode(requested["sample"]))
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or requested["size"] > 10_000_000 else "regular"
            entries.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.json({"files": entries, "commitOid": commit.oid})

    def lfs_batch(self, kind, name):
        self.writable(kind, name)
        objects = []
        for requested in json.loads(self.body)["objects"]:
            oid, size = requested["oid"], requested["size"]
            if oid in self.server.lfs:
                objects.append({"oid": oid, "size": size})
                continue
            grant = secrets.token_hex(8)  # like the signed URL of a bucket, which needs no token
            self.server.uploads[grant] = (oid, size)
            put = {"href": f"{self.server.url}/lfs/{oid}?grant={grant}", "header": {}}
            verify = {"href": f"{self.server.url}/{name}.git/info/lfs/verify", "header": {}}
            objects.append({"oid": oid, "size": size, "actions": {"upload": put, "verify": verify}})
        return self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if self.server.uploads.get(self.query.get("grant")) != (oid, len(self.body)):
            raise HubError(403, "this upload was not granted, or has another size")
        digest = hashlib.sha256(self.body).hexdigest()
        if digest != oid or self.corrupt:
            raise HubError(400, f"XAmzContentSHA256Mismatch: received {digest}, expected {oid}")
        self.server.lfs[oid] = self.body
        return 200, {"ETag": f'"{oid}"'}, b""

    def lfs_verify(self, kind, name):
        self.writable(kind, name)
        request = json.loads(self.body)
        if len(self.server.lfs.get(request["oid"], b"")) != request["size"]:
            raise HubError(404, "this object was not uploaded")
        return self.json({})

    def commit(self, kind, name, revision):
        repository, added, deleted, header = self.writable(kind, name), {}, [], {}
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                header = value
            elif key == "file":
                added[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.server.lfs:
                    raise HubError(400, f"{value['path']}: its content was not uploaded")
                added[value["path"]] = File(self.server.lfs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                deleted.append(value["path"])
            else:
                raise HubError(400, f"no such operation: {key}")
        if "README.md" in added:
            read_front_matter(added["README.md"].content.decode())
        oid = repository.commit(revision, header["summary"], added, deleted, header.get("parentCommit"))
        return self.json({
            "success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}",
            "hookOutput": "", "pullRequestUrl": None,
        })  # fmt: skip

    # branches, tags and files

    def add_branch(self, kind, name, branch):
        repository = self.writable(kind, name)
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.resolve(start).oid
        return self.json({})

    def add_tag(self, kind, name, revision):
        repository, tag = self.writable(kind, name), json.loads(self.body)["tag"]
        if tag in repository.tags:
            raise HubError(409, f"Tag reference exists already: {tag}")
        repository.tags[tag] = repository.resolve(revision).oid
        return self.json({})

    def delete_reference(self, kind, name, what, reference):
        repository = self.writable(kind, name)
        known = repository.branches if what == "branch" else repository.tags
        if reference not in known or reference == "main":
            raise HubError(404, f"no such {what}: {reference}", "RevisionNotFound")
        del known[reference]
        return self.json({})

    def references(self, kind, name):
        repository = self.repository(kind, name)
        listed = {
            "branches": [(key, f"refs/heads/{key}", oid) for key, oid in repository.branches.items()],
            "tags": [(key, f"refs/tags/{key}", oid) for key, oid in repository.tags.items()],
            "converts": [],
        }
        keys = ("name", "ref", "targetCommit")
        return self.json({key: [dict(zip(keys, ref, strict=True)) for ref in refs] for key, refs in listed.items()})

    def commits(self, kind, name, revision):
        return self.json(self.repository(kind, name).log(revision))

    def info(self, kind, name, revision="main"):
        return self.json(self.repository(kind, name).info(revision))

    def tree(self, kind, name, revision, folder):
        recursive = self.query.get("recursive", "false").lower() == "true"
        entries = self.repository(kind, name).tree(revision, folder.strip("/"), recursive)
        return self.json([{**entry, "oid": "0" * 40} if self.corrupt else entry for entry in entries])

    def paths_info(self, kind, name, revision):
        if self.headers.get("Content-Type", "").startswith("application/json"):
            requested = json.loads(self.body)["paths"]
        else:
            requested = parse_qs(self.body.decode()).get("paths", [])
        files = self.repository(kind, name).resolve(revision).files
        entries = [files[path].entry(path) for path in requested if path in files]
        folders = {path for path in requested if any(name.startswith(f"{path}/") for name in files)}
        return self.json(entries + [folder_entry(path) for path in sorted(folders)])

    def resolve(self, kind, name, revision, path):
        commit = self.repository(kind, name).resolve(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        headers = {
            "ETag": f'"{file.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        if byte_range := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            size, start = len(file.content), int(byte_range[1])
            end = min(int(byte_range[2] or size - 1), size - 1)
            if start >= size:
                return 416, {**headers, "Content-Range": f"bytes */{size}"}, b""
            return 206, {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}, file.content[start : end + 1]
        return 200, headers, file.content


ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("PUT", API + r"/settings", Handler.settings),
    ("POST", API + r"/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", GIT + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", GIT + r"\.git/info/lfs/verify", Handler.lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", API + r"/commit/(?P<revision>.+)", Handler.commit),
    ("POST", API + r"/branch/(?P<branch>.+)", Handler.add_branch),
    ("POST", API + r"/tag/(?P<revision>.+)", Handler.add_tag),
    ("DELETE", API + r"/(?P<what>branch|tag)/(?P<reference>.+)", Handler.delete_reference),
    ("GET", API + r"/refs", Handler.references),
    ("GET", API + r"/commits/(?P<revision>.+)", Handler.commits),
    ("GET", API + r"/revision/(?P<revision>.+)", Handler.info),
    ("GET", API + r"/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", Handler.tree),
    ("POST", API + r"/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("GET", API, Handler.info),
    ("GET", GIT + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
