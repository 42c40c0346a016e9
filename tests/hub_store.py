"""What a Hub keeps: repositories with branches, tags and commits of content-addressed files; all of it in memory."""

import hashlib
import json
from dataclasses import dataclass, field

import yaml

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".onnx")


class HubError(Exception):
    """An answer that is an error: status, the Hub's own code for it, and words."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit; one in LFS is a pointer as far as git is concerned."""

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
        """As the Hub lists it in a tree."""
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
    """One repository; commits are kept by oid, and branches and tags point at them."""

    name: str
    kind: str = "model"
    private: bool = False
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", {".gitattributes": ATTRIBUTES})

    def resolve(self, revision):
        """The commit that a branch, a tag, or an oid (or its first 7 letters) names."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        found = [commit for known, commit in self.commits.items() if known == oid or known[:7] == oid]
        if not found:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def commit(self, branch, title, added, deleted=(), parent=None):
        """Add files (bytes or File) to the head of a branch, and delete others; returns the new oid."""
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
        """{path: bytes} of a revision, without .gitattributes."""
        kept = self.resolve(revision).files
        return {path: file.content for path, file in kept.items() if path != ".gitattributes"}

    def info(self, revision="main"):
        """As the Hub tells of a repository."""
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
        """The commits of a revision, the newest first."""
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
    """The YAML at the head of a card; HubError 400 for what is no mapping."""
    if not text.startswith("---\n"):
        return {}
    try:
        found = yaml.safe_load(text.split("---\n")[1])
    except yaml.YAMLError as error:
        raise HubError(400, f"not YAML: {error}") from error
    if not isinstance(found, dict):
        raise HubError(400, "the front matter is no mapping")
    return found
