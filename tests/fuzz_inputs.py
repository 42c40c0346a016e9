"""The inputs of tests/fuzz.py: for each kind a function that writes one into a folder and says which command reads it.

All of them start from what is sound (a recipe, a data set, a picture, an adapter) and break it, because noise is
refused at the first look; what is broken a little gets far.
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
import yaml
from PIL import Image

from medcap.cli import main as medcap
from medcap.recipe.values import key_types

Random = random.Random
Made = tuple[list[str], Callable[[list[str]], None]]
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
class Seeds:
    """What is sound: a base, a data set of phantoms, a run trained on the two, and an evaluation; never written to."""

    base: Path
    data: Path
    run: Path

    @classmethod
    def make(cls, folder: Path) -> "Seeds":
        """The tiny ones of conftest.py, with a run of one step."""
        import conftest
        from transformers import BlipImageProcessor, BlipProcessor

        from medcap.phantom.dataset import write_phantom

        base, data = folder / "base", folder / "data"
        base.mkdir(parents=True)
        tokenizer, size = conftest.tiny_tokenizer(base), {"height": conftest.SIZE, "width": conftest.SIZE}
        conftest.tiny_blip(tokenizer).save_pretrained(base)
        BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(base)
        write_phantom(data, train=6, valid=3, test=3, seed=0)
        seeds = cls(base, data, folder / "run")
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({**seeds.recipe(folder / "run"), "data_dir": str(data), "max_steps": 1}))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_script()(["--config", str(recipe)])
        return seeds

    def recipe(self, out: Path) -> dict[str, Any]:
        """A recipe that is right, but for data that is not there: it gets as far as the model, and no further."""
        return {
            "data_dir": str(out / "nothing"), "model_name_or_path": str(self.base), "output_dir": str(out),
            "num_train_epochs": 1, "per_device_train_batch_size": 2, "num_beams": 1, "max_new_tokens": 4, "lora_r": 2,
            "learning_rate": 0.001, "use_cpu": True, "precision": "fp32", "save_total_limit": 1,
        }  # fmt: skip


def train_script() -> Callable[[list[str]], None]:
    """The `main` of scripts/train.py."""
    spec = importlib.util.spec_from_file_location("fuzzed_train_script", ROOT / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


TRAIN = train_script()


def broken(rng: Random, data: bytes) -> bytes:
    """`data` with one to four wounds: bytes changed, cut out, put in, said twice, or all the rest cut off."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 4, 16, 256))
        junk = bytes(rng.randrange(256) for _ in range(length))
        some = rng.choice((junk, b"\0" * length, b"\xff" * length, b'"', b",", b"\n", b"{", b"]", b"\xed\xa0\x80"))
        wounds = {
            "change": data[:at] + some + data[at + len(some) :], "put in": data[:at] + some + data[at:],
            "cut out": data[:at] + data[at + length :], "twice": data[:at] + data[max(0, at - length) :],
            "cut off": data[:at],
        }  # fmt: skip
        data = wounds[rng.choice(tuple(wounds))]
    return data


def odd(rng: Random, content: Any, depth: int = 0) -> Any:
    """JSON `content` with one value in it, however deep, replaced, dropped, renamed or joined by another."""
    if isinstance(content, dict) and content and (depth == 0 or rng.random() < 0.7):
        key = rng.choice(list(content))
        way = rng.choice(("deeper", "deeper", "replace", "drop", "rename", "more"))
        rest = {name: value for name, value in content.items() if name != key}
        other = str(rng.choice(TEXTS))[:200]
        return {
            "deeper": lambda: {**content, key: odd(rng, content[key], depth + 1)},
            "replace": lambda: {**content, key: rng.choice(VALUES)},
            "drop": lambda: rest,
            "rename": lambda: {**rest, other: content[key]},
            "more": lambda: {**content, other: rng.choice(VALUES)},
        }[way]()
    if isinstance(content, list) and content and rng.random() < 0.7:
        at = rng.randrange(len(content))
        return [*content[:at], odd(rng, content[at], depth + 1), *content[at + 1 :]]
    return rng.choice(VALUES)


def break_file(rng: Random, path: Path) -> None:
    """Break the file in its own language where it has one, else in its bytes."""
    way = rng.random()
    if path.suffix == ".json" and way < 0.6:
        path.write_text(json.dumps(odd(rng, json.loads(path.read_text()))), encoding="utf-8")
    elif path.suffix == ".yaml" and way < 0.6:
        path.write_text(as_yaml(odd(rng, yaml.safe_load(path.read_text()))), encoding="utf-8", errors="replace")
    elif path.suffix == ".safetensors" and way < 0.6:
        path.write_bytes(odd_tensors(rng, path.read_bytes()))
    elif way < 0.9:
        path.write_bytes(broken(rng, path.read_bytes()))
    elif way < 0.93:
        path.unlink()
    elif way < 0.96:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(rng.choice((b"", b"[" * 100_000, b"{}", b"[]", b"null", b"\0" * 1000, PICKLE)))


# what a pickle could do: this one makes a folder where the watch would see it
PICKLE = b"cposix\nmkdir\n(S'/tmp/medcap-fuzz-was-here'\ntR."


def odd_tensors(rng: Random, data: bytes) -> bytes:
    """Safetensors with an odd header (sizes, shapes, types, names) before the same bytes."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(odd(rng, json.loads(data[8 : 8 + size]))).encode()
    length = rng.choice((len(header), len(header), len(header), 2**63, 0, len(header) + 9))
    return length.to_bytes(8, "little") + header + data[8 + size :]


def as_yaml(content: Any) -> str:
    """YAML of anything."""
    return yaml.safe_dump(content, allow_unicode=True)


KEYS = sorted(key_types().keys() - {"debug"})  # --debug asks for a traceback
MANY = "a: &a [x, x]\n" + "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else '*a'] * 9)}]\n" for n in range(9))
YAMLS = (
    MANY, "seed: !!python/object/apply:os.mkdir ['/tmp/medcap-fuzz-was-here']", "prompt: !!python/name:os.system",
    "? [a]\n: b", "- a", "a", "", "[" * 5000, "{" * 5000, "a: b: c", "\t", "%YAML 9.9\n---\na: 1", "--- a\n--- b",
    "<<: *x", "a: 1\na: 2", "prompt: 2026-01-01", "seed: 0o17", "seed: 1_000", "data_dir: !!binary AAAA",
)  # fmt: skip


def make_recipe(rng: Random, folder: Path, seeds: Seeds) -> Made:
    """A recipe of which a few keys, values or bytes are odd; one in twelve has data and is really trained."""
    keys, way = seeds.recipe(folder / "run"), rng.random()
    if rng.random() < 1 / 12:
        keys |= {"data_dir": str(seeds.data), "max_steps": 1, "eval_strategy": "no", "save_strategy": "no",
                 "load_best_model_at_end": False}  # fmt: skip
    words: list[str] = []
    for _ in range(rng.randint(1, 3)):
        key, value = rng.choice(KEYS), rng.choice(VALUES)
        if way < 0.2 and not (isinstance(value, str) and "\0" in value):
            words += [f"--{key}", str(value)[:1000]]
        else:
            keys[key] = value
    path = folder / "recipe.yaml"
    text = as_yaml(keys).encode("utf-8", "replace")
    path.write_bytes(broken(rng, text) if way > 0.75 else rng.choice(YAMLS).encode() if way > 0.7 else text)
    return ["--config", str(path), *words], TRAIN


def make_table(rng: Random, folder: Path, seeds: Seeds) -> Made:
    """A table of captions, concepts, licences, scores or predictions with a wound in its bytes."""
    if rng.random() < 0.3:
        return _scored(rng, folder, [f"i{n}" for n in range(3)], ["a mass", "a cyst, 3.5 cm", "normal"], broken)
    if rng.random() < 0.2:
        return _compared(rng, folder)
    data = shutil.copytree(seeds.data, folder / "data")
    path = rng.choice(sorted(data.glob("*.csv")))
    path.write_bytes(broken(rng, path.read_bytes()))
    return _audited(data, folder, seeds)


def make_captions(rng: Random, folder: Path, seeds: Seeds) -> Made:
    """Captions and ids that are sound as files and hostile as texts."""
    texts, way = [rng.choice(TEXTS) for _ in range(4)], rng.random()
    ids = [f"i{n}" for n in range(4)] if rng.random() < 0.7 else [rng.choice(TEXTS)[:80] + str(n) for n in range(4)]
    if way < 0.12:
        return _scored(rng, folder, ids, texts, lambda rng, data: data)
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
    if way < 0.17:
        words = ["evaluate", "--model", str(seeds.base), "--data", str(data), "--out", str(folder / "out")]
        return [
            *words,
            "--num_beams",
            "1",
            "--max_new_tokens",
            "3",
            "--feature_cache",
            "off",
            "--name",
            texts[0],
        ], medcap
    return _audited(data, folder, seeds)


def _audited(data: Path, folder: Path, seeds: Seeds) -> Made:
    words = ["data", "audit", str(data), "--out", str(folder / "report.json"), "--tokenizer", str(seeds.base)]
    return [*words, "--num_proc", "1"], medcap


def _scored(
    rng: Random, folder: Path, ids: list[str], texts: list[str], wound: Callable[[Random, bytes], bytes]
) -> Made:
    for name, captions in (("said.csv", texts), ("made.csv", texts[::-1])):
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("ID", "Caption"), *zip(ids, captions, strict=True)])
        (folder / name).write_bytes(text.getvalue().encode("utf-8", "replace"))
    path = folder / rng.choice(("said.csv", "made.csv"))
    path.write_bytes(wound(rng, path.read_bytes()))
    words = ["score", "--predictions", str(folder / "made.csv"), "--references", str(folder / "said.csv")]
    return [*words, "--out", str(folder / "m.json"), "--protocol", rng.choice(("coco", "imageclef"))], medcap


def _compared(rng: Random, folder: Path) -> Made:
    """Two evaluations, of which one has a wound."""
    from medcap.evaluation.csv_files import write_scores
    from medcap.metrics.statistics import METRICS, Statistics

    random = np.random.default_rng(0).random
    for name in ("one", "two"):
        (folder / name).mkdir()
        made = Statistics(random((9, 10)) + 5, random(9), random(9), random((9, 6)) + 1)
        write_scores(folder / name / "scores.csv", [f"i{n}" for n in range(9)], [None] * 9, made)
        result = {
            "name": name, "n": 9, "metrics": dict.fromkeys(METRICS, 0.5), "signature": "metrics:coco|n:9|data:abc",
            "intervals": {key: [0.4, 0.6] for key in METRICS}, "baselines": {}, "captions": {},
        }  # fmt: skip
        (folder / name / "metrics.json").write_text(json.dumps(result))
    break_file(rng, folder / "one" / rng.choice(("scores.csv", "metrics.json")))
    return ["compare", str(folder / "one"), str(folder / "two"), "--out", str(folder / "out")], medcap


FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "JPEG2000", "TGA")


def make_image(rng: Random, folder: Path, seeds: Seeds) -> Made:
    """A picture or a DICOM file with wounds, by its own name or another's."""
    path = folder / f"x{rng.choice(('.png', '.png', '.jpg', '.dcm', '.tif', '.gif', ''))}"
    if rng.random() < 0.4:
        data = _dicom(rng)
    else:
        pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (24, 31, 3), dtype=np.uint8)
        mode = rng.choice(("RGB", "RGB", "L", "P", "1"))
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, rng.choice(("PNG", "GIF") if mode in "P1" else FORMATS))
        data = file.getvalue()
    path.write_bytes(broken(rng, data) if rng.random() < 0.95 else data)
    words = ["caption", str(rng.choice((path, path, folder))), "--model", str(seeds.base), "--max_new_tokens", "3"]
    words += ["--frame", str(rng.choice((0, 1, -1, 10**9)))] if rng.random() < 0.1 else []
    return [*words, "--num_beams", "1", "--out", str(folder / "captions.jsonl")], medcap


def _dicom(rng: Random) -> bytes:
    from data.dicom_files import dicom
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
    )  # fmt: skip

    syntax = rng.choice((None, None, RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian))
    shape = rng.choice(((64, 80), (3, 64, 80), (64, 80, 3)))  # the least that JPEG 2000 takes
    values = np.random.default_rng(rng.randrange(99)).integers(0, 200, shape, dtype=np.uint8)
    values = values if shape[-1] == 3 or rng.random() < 0.5 else values.astype(np.uint16)
    made = dicom(values, ExplicitVRLittleEndian)
    if syntax == DeflatedExplicitVRLittleEndian:
        made.file_meta.TransferSyntaxUID = syntax
    elif syntax is not None:
        made.compress(syntax)
    names = ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "SamplesPerPixel", "WindowCenter",
             "PhotometricInterpretation", "RescaleSlope", "PixelRepresentation", "WindowWidth")  # fmt: skip
    for name in rng.sample(names, rng.choice((0, 0, 1, 2))):
        with contextlib.suppress(Exception):  # pydicom itself refuses some
            setattr(made, name, rng.choice((0, 1, -1, 3, 16, 255, 65535, "1", "MONOCHROME1", "PALETTE COLOR")))
    file = io.BytesIO()
    try:
        made.save_as(file, enforce_file_format=True)
    except Exception:  # and cannot write others
        return _dicom(rng)
    return file.getvalue()


def make_checkpoint(rng: Random, folder: Path, seeds: Seeds) -> Made:
    """An adapter, a base or a checkpoint with a broken file, captioned with, published, or gone on from."""
    way = rng.random()
    if way < 0.35:
        model = shutil.copytree(seeds.run / "adapter", folder / "adapter")
    elif way < 0.65:
        model = shutil.copytree(seeds.base, folder / "base")
    else:
        return _of_run(rng, folder, seeds, way < 0.9)
    break_file(rng, rng.choice([path for path in sorted(model.iterdir()) if path.is_file()]))
    Image.new("L", (20, 20), 90).save(folder / "x.png")
    words = ["caption", str(folder / "x.png"), "--model", str(model), "--num_beams", "1", "--max_new_tokens", "3"]
    return [*words, "--out", str(folder / "captions.jsonl")], medcap


def _of_run(rng: Random, folder: Path, seeds: Seeds, is_published: bool) -> Made:
    run = shutil.copytree(seeds.run, folder / "run")
    checkpoint = next(run.glob("checkpoint-*"))
    place = rng.choice((run / "adapter", run / "adapter", run)) if is_published else checkpoint
    break_file(rng, rng.choice([path for path in sorted(place.iterdir()) if path.is_file()]))
    if is_published:
        form = rng.choice(([], [], [], ["--merge"], ["--space"]))
        return ["publish", str(run), "--to", str(folder / "release"), *form], medcap
    recipe = {**seeds.recipe(run), "data_dir": str(seeds.data), "max_steps": 1, "eval_strategy": "no",
              "save_strategy": "no", "load_best_model_at_end": False}  # fmt: skip
    (folder / "recipe.yaml").write_text(as_yaml(recipe))
    return ["--config", str(folder / "recipe.yaml"), "--resume_from_checkpoint", "last"], TRAIN


MAKERS = {
    "recipes": make_recipe, "tables": make_table, "images": make_image, "captions": make_captions,
    "checkpoints": make_checkpoint,
}  # fmt: skip
