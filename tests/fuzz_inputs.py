"""The inputs of tests/fuzz.py: a function per kind that writes an input into a folder and returns its command.

Each input is a slightly corrupted copy of a valid one (recipe, data set, image, adapter): random bytes would be
refused by the first check, while small damage reaches later code.
"""

import contextlib
import csv
import importlib.util
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import yaml
from fuzz_oracles import make_dicom, make_features, make_pairs
from PIL import Image

from medcap.cli import main as medcap
from medcap.recipe.values import key_types

Random = random.Random
Input = tuple[list[str], Callable[[list[str]], None]]  # argv and the function that takes it
ROOT = Path(__file__).parents[1]

TEXTS = (
    "", " ", "\u202f", "a", "=1+1", "=cmd|'/c calc'!A0", "@SUM(A1)", "<script>alert(1)</script>",
    "<img src=x onerror=a()>", "{{ 7 * 7 }}", "{% raw %}", "| a | b |", "`x`", "[a](javascript:b)", "&amp;", "a\nb",
    "a\r\nb", "a\x00b", "a\x1b[31mb", "\u202eright to left", "\u05d0\u05d1\u05d2", "\u0627\u0644\u0635\u062f\u0631",
    "e" + "\u0301" * 300, "\U0001f9b4" * 40, "\ufeffbom", "\ufffe", "\u2028", "\ud800", "\u4e2d\u6587" * 400,
    "[DEC] [SEP] [PAD]", "x" * 100_000, "x - " * 20_000, "( " * 10_000, "1. " * 10_000, "' " * 10_000, "- " * 10_000,
    "a. b. " * 5_000, "3. 5 cm ( arrow )", '"', '""', "'", "a,b", "..", "../../escape", "/etc/passwd", "C:\\x", "~",
    "%s %n", "\\", "NaN", "None", "-", "#", "null",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"))
VALUES = (*TEXTS, *NUMBERS, True, False, None, [], {}, [1, "a"], {"a": 1}, [[[]]], ["a"] * 1000)


@dataclass(frozen=True)
class Sources:
    """The valid inputs, which are copied and never changed: a base, a data set of phantoms, and a run on both."""

    base: Path
    data: Path
    run: Path

    @classmethod
    def make(cls, folder: Path) -> "Sources":
        """Write the tiny base of conftest.py, a data set and a run of one step."""
        import conftest
        from transformers import BlipImageProcessor, BlipProcessor

        from medcap.phantom.dataset import write_phantom

        base, data = folder / "base", folder / "data"
        base.mkdir(parents=True)
        tokenizer, size = conftest.tiny_tokenizer(base), {"height": conftest.SIZE, "width": conftest.SIZE}
        conftest.tiny_blip(tokenizer).save_pretrained(base)
        BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(base)
        write_phantom(data, train=6, valid=3, test=3, seed=0)
        sources = cls(base, data, folder / "run")
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**sources.recipe(folder / "run"), "data_dir": str(data), "max_steps": 1}))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_script()(["--config", str(recipe)])
        return sources

    def recipe(self, out: Path) -> dict[str, Any]:
        """Return a valid recipe whose data set does not exist: the run fails when it loads the data."""
        return {
            "data_dir": str(out / "missing"), "model_name_or_path": str(self.base), "output_dir": str(out),
            "num_train_epochs": 1, "per_device_train_batch_size": 2, "num_beams": 1, "max_new_tokens": 4, "lora_r": 2,
            "learning_rate": 0.001, "use_cpu": True, "precision": "fp32", "save_total_limit": 1,
        }  # fmt: skip


def train_script() -> Callable[[list[str]], None]:
    """Return the `main` function of scripts/train.py."""
    spec = importlib.util.spec_from_file_location("fuzzed_train_script", ROOT / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


TRAIN = train_script()


def corrupt_bytes(rng: Random, data: bytes) -> bytes:
    """Return `data` with one to four changes: bytes replaced, inserted, deleted, repeated, or the end removed."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16, 256))
        noise = bytes(rng.randrange(256) for _ in range(length))
        new = rng.choice((noise, b"\0" * length, b"\xff" * length, b'"', b",", b"\n", b"{", b"]", b"\xed\xa0\x80"))
        changed = (
            data[:at] + new + data[at + len(new) :],
            data[:at] + new + data[at:],
            data[:at] + data[at + length :],
            data[:at] + data[max(0, at - length) :],
            data[:at],
        )
        data = rng.choice(changed)
    return data


def corrupt_json(rng: Random, content: Any, depth: int = 0) -> Any:
    """Return JSON `content` with one value, at any depth, replaced, removed, renamed or added."""
    if isinstance(content, dict) and content and (depth == 0 or rng.random() < 0.7):
        key = rng.choice(list(content))
        change = rng.choice(("deeper", "deeper", "replace", "remove", "rename", "add"))
        rest = {name: value for name, value in content.items() if name != key}
        new_key = str(rng.choice(TEXTS))[:200]
        if change == "deeper":
            return {**content, key: corrupt_json(rng, content[key], depth + 1)}
        if change in ("remove", "rename"):
            return rest if change == "remove" else {**rest, new_key: content[key]}
        return {**content, (key if change == "replace" else new_key): rng.choice(VALUES)}
    if isinstance(content, list) and content and rng.random() < 0.7:
        at = rng.randrange(len(content))
        return [*content[:at], corrupt_json(rng, content[at], depth + 1), *content[at + 1 :]]
    return rng.choice(VALUES)


def corrupt_file(rng: Random, path: Path) -> None:
    """Corrupt a file: its values if it has a known format, or its bytes; or remove or replace it."""
    chance = rng.random()
    if path.suffix == ".json" and chance < 0.6:
        path.write_text(json.dumps(corrupt_json(rng, json.loads(path.read_text()))), encoding="utf-8")
    elif path.suffix == ".yaml" and chance < 0.6:
        content = corrupt_json(rng, yaml.safe_load(path.read_text()))
        path.write_text(to_yaml(content), encoding="utf-8", errors="replace")
    elif path.suffix == ".safetensors" and chance < 0.6:
        path.write_bytes(corrupt_safetensors(rng, path.read_bytes()))
    elif chance < 0.9:
        path.write_bytes(corrupt_bytes(rng, path.read_bytes()))
    elif chance < 0.93:
        path.unlink()
    elif chance < 0.96:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(rng.choice((b"", b"[" * 100_000, b"{}", b"[]", b"null", b"\0" * 1000, PICKLE)))


# creates a folder outside the case's folder when it is unpickled; the write monitor detects it
PICKLE = b"cposix\nmkdir\n(S'/tmp/medcap-fuzz-was-here'\ntR."


def corrupt_safetensors(rng: Random, data: bytes) -> bytes:
    """Return safetensors with a corrupted header (sizes, shapes, types, names) and the same tensor data."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(corrupt_json(rng, json.loads(data[8 : 8 + size]))).encode()
    length = rng.choice((len(header), len(header), len(header), 2**63, 0, len(header) + 9))
    return length.to_bytes(8, "little") + header + data[8 + size :]


def to_yaml(content: Any) -> str:
    return yaml.safe_dump(content, allow_unicode=True)


KEYS = sorted(key_types().keys() - {"debug", "max_steps"})  # they ask for a traceback, and for a long training
ALIASES = "a: &a [x, x]\n" + "".join(
    f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else '*a'] * 9)}]\n" for n in range(9)
)
YAMLS = (
    ALIASES, "seed: !!python/object/apply:os.mkdir ['/tmp/medcap-fuzz-was-here']", "prompt: !!python/name:os.system",
    "? [a]\n: b", "- a", "a", "", "[" * 5000, "{" * 5000, "a: b: c", "\t", "%YAML 9.9\n---\na: 1", "--- a\n--- b",
    "<<: *x", "a: 1\na: 2", "prompt: 2026-01-01", "seed: 0o17", "seed: 1_000", "data_dir: !!binary AAAA",
)  # fmt: skip


def make_recipe(rng: Random, folder: Path, sources: Sources) -> Input:
    """Write a recipe with a few unexpected keys, values or bytes; one in twelve has data and is trained."""
    keys, chance = sources.recipe(folder / "run"), rng.random()
    if rng.random() < 1 / 12:
        keys |= {"data_dir": str(sources.data), "max_steps": 1, "eval_strategy": "no", "save_strategy": "no",
                 "load_best_model_at_end": False}  # fmt: skip
    options: list[str] = []
    for _ in range(rng.randint(1, 3)):
        key, value = rng.choice(KEYS), rng.choice(VALUES)
        if rng.random() < 0.1:  # a list whose items look like options
            value = [rng.choice(TEXTS), f"--{rng.choice(KEYS)}", rng.choice(("true", "x", "0"))]
        if chance < 0.2 and not (isinstance(value, str) and "\0" in value):
            options += [f"--{key}", str(value)[:1000]]
        else:
            keys[key] = value
    path = folder / "recipe.yaml"
    text = to_yaml(keys).encode("utf-8", "replace")
    if chance > 0.75:
        text = corrupt_bytes(rng, text)
    elif chance > 0.7:
        text = rng.choice(YAMLS).encode()
    path.write_bytes(text)
    return ["--config", str(path), *options], TRAIN


def make_table(rng: Random, folder: Path, sources: Sources) -> Input:
    """Write a table of captions, concepts, licences, scores or predictions with corrupted bytes."""
    if rng.random() < 0.3:
        captions = ["a mass", "a cyst, 3.5 cm", "normal"]
        return score_input(rng, folder, [f"i{n}" for n in range(3)], captions, is_corrupted=True)
    if rng.random() < 0.2:
        return compare_input(rng, folder)
    if rng.random() < 0.3:
        return parquet_input(rng, folder, sources)
    data = shutil.copytree(sources.data, folder / "data")
    path = rng.choice(sorted(data.glob("*.csv")))
    path.write_bytes(corrupt_bytes(rng, path.read_bytes()))
    return audit_input(data, folder, sources)


IMAGES = (
    "0.png", "./0.png", "../0.png", "/etc/passwd", "http://127.0.0.1/x.png", "file:///etc/passwd", "0.png\x00", "",
    {"bytes": None, "path": "0.png"}, {"bytes": b"x", "path": None}, {"bytes": None, "path": "/etc/passwd"},
)  # fmt: skip


def parquet_input(rng: Random, folder: Path, sources: Sources) -> Input:
    """Write an image folder whose parquet table has unusual values, columns or bytes."""
    data = folder / "data"
    data.mkdir()
    for number in range(4):
        Image.new("L", (20, 20), 40 * number).save(data / f"{number}.png")
    images: list[Any] = [f"{number}.png" for number in range(4)]
    if rng.random() < 0.4:
        images = [rng.choice([value for value in IMAGES if isinstance(value, str)]), *images[1:]]
    if rng.random() < 0.2:
        images = [{"bytes": None, "path": name} for name in images[:3]] + [rng.choice(IMAGES[-3:])]
    captions = rng.choice(
        (["a", None, "c", "d"], [1.5, float("nan"), 2.0, 0.0], [rng.choice(TEXTS) for _ in range(4)])
    )
    names = [rng.choice(("file_name", "File_Name", "image")), rng.choice(("caption", "Caption", "text"))]
    table = {
        names[0]: images,
        names[1]: captions,
        rng.choice(("split", "SPLIT", "x")): ["train", "train", "valid", "test"],
    }
    path = data / "metadata.parquet"
    with contextlib.suppress(pyarrow.ArrowException, UnicodeEncodeError):  # not writable: lone surrogates, mixed types
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    if not path.exists():
        return parquet_input(rng, shutil.rmtree(data) or folder, sources)
    if rng.random() < 0.3:
        path.write_bytes(corrupt_bytes(rng, path.read_bytes()))
    return audit_input(data, folder, sources)


def make_captions(rng: Random, folder: Path, sources: Sources) -> Input:
    """Write captions and ids of unusual text in valid files."""
    texts, chance = [rng.choice(TEXTS) for _ in range(4)], rng.random()
    ids = [f"i{n}" for n in range(4)] if rng.random() < 0.7 else [rng.choice(TEXTS)[:80] + str(n) for n in range(4)]
    if chance < 0.12:
        return score_input(rng, folder, ids, texts, is_corrupted=False)
    data = folder / "data"
    data.mkdir()
    names = [f"{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        Image.new("L", (20, 20), 40 * n).save(data / name)
    if rng.random() < 0.3:
        names[0] = rng.choice(TEXTS)
    splits = ["train", "train", "valid", "test"]
    rows = zip(names, ids, texts, splits, strict=True)
    lines = [json.dumps(dict(zip(("file_name", "image_id", "caption", "split"), row, strict=True))) for row in rows]
    (data / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    if chance < 0.17:
        argv = ["evaluate", "--model", str(sources.base), "--data", str(data), "--out", str(folder / "out")]
        argv += ["--num_beams", "1", "--max_new_tokens", "3", "--feature_cache", "off", "--name", texts[0]]
        return argv, medcap
    return audit_input(data, folder, sources)


def audit_input(data: Path, folder: Path, sources: Sources) -> Input:
    argv = ["data", "audit", str(data), "--out", str(folder / "report.json"), "--tokenizer", str(sources.base)]
    return [*argv, "--num_proc", "1"], medcap


def score_input(rng: Random, folder: Path, ids: list[str], captions: list[str], *, is_corrupted: bool) -> Input:
    """Write predictions and references, one of them corrupted if `is_corrupted`."""
    for name, texts in (("references.csv", captions), ("predictions.csv", captions[::-1])):
        file = io.StringIO(newline="")
        csv.writer(file).writerows([("ID", "Caption"), *zip(ids, texts, strict=True)])
        (folder / name).write_bytes(file.getvalue().encode("utf-8", "replace"))
    path = folder / rng.choice(("references.csv", "predictions.csv"))
    if is_corrupted:
        path.write_bytes(corrupt_bytes(rng, path.read_bytes()))
    argv = ["score", "--predictions", str(folder / "predictions.csv"), "--references", str(folder / "references.csv")]
    protocol = rng.choice(("coco", "imageclef-2025", "imageclef-2026"))
    return [*argv, "--out", str(folder / "m.json"), "--protocol", protocol], medcap


def compare_input(rng: Random, folder: Path) -> Input:
    """Write two evaluations, one of them corrupted."""
    from medcap.evaluation.csv_files import write_scores
    from medcap.metrics.statistics import METRICS, Statistics

    random = np.random.default_rng(0).random
    for name in ("one", "two"):
        (folder / name).mkdir()
        statistics = Statistics(random((9, 10)) + 5, random(9), random(9), random((9, 6)) + 1)
        write_scores(folder / name / "scores.csv", [f"i{n}" for n in range(9)], [None] * 9, statistics)
        result = {
            "name": name, "n": 9, "metrics": dict.fromkeys(METRICS, 0.5), "signature": "metrics:coco|n:9|data:abc",
            "intervals": {key: [0.4, 0.6] for key in METRICS}, "baselines": {}, "captions": {},
        }  # fmt: skip
        (folder / name / "metrics.json").write_text(json.dumps(result))
    corrupt_file(rng, folder / "one" / rng.choice(("scores.csv", "metrics.json")))
    return ["compare", str(folder / "one"), str(folder / "two"), "--out", str(folder / "out")], medcap


FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "JPEG2000", "TGA")


def make_image(rng: Random, folder: Path, sources: Sources) -> Input:
    """Write a corrupted image or DICOM file with a matching or another extension."""
    path = folder / f"x{rng.choice(('.png', '.png', '.jpg', '.dcm', '.tif', '.gif', ''))}"
    if rng.random() < 0.4:
        data = dicom_bytes(rng)
    else:
        pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (24, 31, 3), dtype=np.uint8)
        mode = rng.choice(("RGB", "RGB", "L", "P", "1"))
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, rng.choice(("PNG", "GIF") if mode in "P1" else FORMATS))
        data = file.getvalue()
    path.write_bytes(corrupt_bytes(rng, data) if rng.random() < 0.95 else data)
    argv = ["caption", str(rng.choice((path, path, folder))), "--model", str(sources.base), "--max_new_tokens", "3"]
    argv += ["--frame", str(rng.choice((0, 1, -1, 10**9)))] if rng.random() < 0.1 else []
    return [*argv, "--num_beams", "1", "--out", str(folder / "captions.jsonl")], medcap


def dicom_bytes(rng: Random) -> bytes:
    """Return a DICOM file of a random transfer syntax with up to two unexpected values in its header."""
    from data.dicom_files import compressed, dicom
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
    )  # fmt: skip

    syntax = rng.choice((None, None, RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian))
    shape = rng.choice(((64, 80), (3, 64, 80), (64, 80, 3)))  # the smallest size that JPEG 2000 accepts
    values = np.random.default_rng(rng.randrange(99)).integers(0, 200, shape, dtype=np.uint8)
    values = values if shape[-1] == 3 or rng.random() < 0.5 else values.astype(np.uint16)
    data_set = dicom(values, ExplicitVRLittleEndian)
    if syntax == DeflatedExplicitVRLittleEndian:
        data_set.file_meta.TransferSyntaxUID = syntax
    elif syntax is not None:
        compressed(data_set, syntax)
    names = ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "SamplesPerPixel", "WindowCenter",
             "PhotometricInterpretation", "RescaleSlope", "PixelRepresentation", "WindowWidth")  # fmt: skip
    for name in rng.sample(names, rng.choice((0, 0, 1, 2))):
        with contextlib.suppress(Exception):  # pydicom refuses some values
            setattr(data_set, name, rng.choice((0, 1, -1, 3, 16, 255, 65535, "1", "MONOCHROME1", "PALETTE COLOR")))
    file = io.BytesIO()
    try:
        data_set.save_as(file, enforce_file_format=True)
    except Exception:  # pydicom cannot write some values
        return dicom_bytes(rng)
    return file.getvalue()


def make_checkpoint(rng: Random, folder: Path, sources: Sources) -> Input:
    """Write an adapter, base or run with a corrupted file, to caption with, publish or resume from."""
    chance = rng.random()
    if chance < 0.35:
        model = shutil.copytree(sources.run / "adapter", folder / "adapter")
    elif chance < 0.65:
        model = shutil.copytree(sources.base, folder / "base")
    else:
        return run_input(rng, folder, sources, is_published=chance < 0.9)
    corrupt_file(rng, rng.choice([path for path in sorted(model.iterdir()) if path.is_file()]))
    Image.new("L", (20, 20), 90).save(folder / "x.png")
    argv = ["caption", str(folder / "x.png"), "--model", str(model), "--num_beams", "1", "--max_new_tokens", "3"]
    return [*argv, "--out", str(folder / "captions.jsonl")], medcap


def run_input(rng: Random, folder: Path, sources: Sources, *, is_published: bool) -> Input:
    run = shutil.copytree(sources.run, folder / "run")
    checkpoint = next(run.glob("checkpoint-*"))
    parent = rng.choice((run / "adapter", run / "adapter", run)) if is_published else checkpoint
    corrupt_file(rng, rng.choice([path for path in sorted(parent.iterdir()) if path.is_file()]))
    if is_published:
        options = rng.choice(([], [], [], ["--merge"], ["--space"]))
        return ["publish", str(run), "--to", str(folder / "release"), *options], medcap
    recipe = {**sources.recipe(run), "data_dir": str(sources.data), "max_steps": 1, "eval_strategy": "no",
              "save_strategy": "no", "load_best_model_at_end": False}  # fmt: skip
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    return ["--config", str(folder / "recipe.yaml"), "--resume_from_checkpoint", "last"], TRAIN


MAKERS = {
    "recipes": make_recipe, "tables": make_table, "images": make_image, "captions": make_captions,
    "checkpoints": make_checkpoint, "dicom": make_dicom, "features": make_features, "pairs": make_pairs,
}  # fmt: skip
