"""In-memory storage of the Hub server: repositories with branches, tags and commits of content-addressed files."""

import hashlib
import json
from dataclasses import dataclass, field

import yaml

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".onnx")


class HubError(Exception):
    """An error response: status, message and the Hub's error code."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Fault:
    """A fault for requests whose `METHOD path` matches `where`, `times` times (None: always).

    `kind` is a status, "drop" (the connection is closed during the request), "lost" (the request is processed, the
    response is not sent), "late" (the response is sent after `seconds`) or "sha" (the response has a wrong checksum).
    """

    kind: int | str
    where: str = ""
    times: int | None = 1
    headers: dict = field(default_factory=dict)
    seconds: float = 0.0
    message: str = "injected fault"


def folder_entry(path):
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit; git stores a pointer for a file in LFS."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self):
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self):
        return git_oid(self.pointer if self.lfs else self.content)

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid

    def entry(self, path):
        """Return the entry in a tree listing of the Hub."""
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.pointer)}
        entry = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        return {**entry, **({"lfs": lfs} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    title: str
    files: dict
    parents: tuple = ()

    @property
    def oid(self):
        tree = [(path, file.oid) for path, file in sorted(self.files.items())]
        return hashlib.sha1(json.dumps([self.title, self.parents, tree]).encode()).hexdigest()


@dataclass
class Repository:
    """A repository; `commits` are stored by oid, branches and tags name oids."""

    name: str
    kind: str = "model"
    private: bool = False
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", {".gitattributes": ATTRIBUTES})

    def resolve(self, revision):
        """Return the commit of a branch, tag, oid or the first 7 characters of an oid."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        commits = [commit for known, commit in self.commits.items() if known == oid or known[:7] == oid]
        if not commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commits[0]

    def commit(self, branch, title, added, deleted=(), parent=None):
        """Commit added (bytes or File) and deleted files to a branch; return the new oid."""
        head = self.branches.get(branch)
        if parent is not None and parent != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.commits[head].files) if head else {}
        for path in deleted:
            if path not in files:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del files[path]
        for path, content in added.items():
            files[path] = content if isinstance(content, File) else File(content, path.endswith(LFS_SUFFIXES))
        new = Commit(title, files, (head,) if head else ())
        self.commits[new.oid] = new
        self.branches[branch] = new.oid
        return new.oid

    def files(self, revision="main"):
        """Return {path: bytes} of a revision, without .gitattributes."""
        files = self.resolve(revision).files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def tree(self, revision, folder, recursive):
        """Return the tree listing of a folder; "" is the root."""
        prefix = f"{folder}/" if folder else ""
        below = {path: file for path, file in self.resolve(revision).files.items() if path.startswith(prefix)}
        if folder and not below:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        parents = [path[len(prefix) :].split("/")[:-1] for path in below]
        folders = {"/".join(names[: end + 1]) for names in parents for end in range(len(names))}
        if not recursive:
            folders = {names[0] for names in parents if names}
            below = {path: file for path, file in below.items() if "/" not in path[len(prefix) :]}
        files = [file.entry(path) for path, file in sorted(below.items())]
        return [folder_entry(prefix + name) for name in sorted(folders)] + files

    def info(self, revision="main"):
        """Return the response of the Hub's model info."""
        commit = self.resolve(revision)
        card = read_front_matter(commit.files["README.md"].content.decode()) if "README.md" in commit.files else {}
        return {
            "_id": "1", "id": self.name, "modelId": self.name, "author": self.name.split("/")[0], "sha": commit.oid,
            "private": self.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "cardData": card, "tags": list(card.get("tags") or []), "library_name": card.get("library_name"),
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }  # fmt: skip

    def log(self, revision):
        """Return the commits of a revision, newest first."""
        commit = self.resolve(revision)
        lines = []
        while True:
            lines.append({
                "id": commit.oid, "title": commit.title, "message": "", "authors": [{"user": "someone"}],
                "date": "2026-01-01T00:00:00.000Z",
            })  # fmt: skip
            if not commit.parents:
                return lines
            commit = self.commits[commit.parents[0]]


def read_front_matter(text):
    """Return the YAML front matter of a card; HubError 400 if it is not a mapping."""
    if not text.startswith("---\n"):
        return {}
    try:
        metadata = yaml.safe_load(text.split("---\n")[1])
    except yaml.YAMLError as error:
        raise HubError(400, f"not YAML: {error}") from error
    if not isinstance(metadata, dict):
        raise HubError(400, "the front matter is not a mapping")
    return metadata
