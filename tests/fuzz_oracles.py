"""Inputs of tests/fuzz.py whose right result is known, so that a wrong result without an error is a fault.

dicom     A ramp from black to white, with one or two header elements removed, emptied, duplicated under another VR,
          or with other bits: it reads as a ramp (in either direction, at least 150 of 255 levels) or is refused. Bits
          and dimensions change what the values mean, so there only the general rules apply.
features  A feature cache with damaged files: each image's features are exact or absent, and can be stored again.
pairs     Two commands at once in one folder: at least one finishes, and what is there afterwards is complete and
          what one of them writes alone.
"""

import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medcap.data.images import DIGEST_BYTES, read_image
from medcap.logs import report_errors
from medcap.modeling.feature_store import FeatureCache

Random = random.Random
Command = Callable[[list[str]], None]
MONOCHROME = {
    "8 bit": (np.uint8, {}),
    "16 bit": (np.uint16, {}),
    "12 bit": (np.uint16, {"BitsStored": 12, "HighBit": 11}),
    "signed": (np.int16, {"RescaleIntercept": -1024, "RescaleSlope": 1}),
    "window": (np.uint16, {"WindowCenter": 2048, "WindowWidth": 4096, "RescaleIntercept": 0, "RescaleSlope": 1}),
    "sigmoid": (np.uint16, {"WindowCenter": 2048, "WindowWidth": 2048, "VOILUTFunction": "SIGMOID"}),
    "padded": (np.uint16, {"PixelPaddingValue": 0}),
    "inverted": (np.uint16, {"PhotometricInterpretation": "MONOCHROME1"}),
}
BITS = ("BitsAllocated", "BitsStored", "HighBit", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")
OTHERS = (
    "PhotometricInterpretation", "PixelRepresentation", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelPaddingValue", "SmallestImagePixelValue",
    "LargestImagePixelValue", "PresentationLUTShape", "RescaleType", "Modality", "SOPClassUID", "BurnedInAnnotation",
    "ImageType", "PixelAspectRatio", "TransferSyntaxUID",
)  # fmt: skip
UNUSUAL = {  # values that occur in files and have one right reading, or none
    "PixelPaddingValue": (0, 65535, 63536, 32768), "RescaleSlope": ("0", "1"),
    "RescaleIntercept": ("0", "0.0"), "WindowCenter": ("2047.5", "2048\\100"), "HighBit": (15, 11, 7),
    "PhotometricInterpretation": ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR", "X"),
    "VOILUTFunction": ("LINEAR", "LINEAR_EXACT", "SIGMOID", "X"), "PresentationLUTShape": ("INVERSE", "IDENTITY", "X"),
    "Modality": ("CT", "NM", "MR", "PT", "SEG", "X"), "BurnedInAnnotation": ("YES", "NO", "X"),
}  # fmt: skip
VRS = ("US", "SS", "DS", "IS", "LO", "CS", "FD", "OW", "UN", "UL")


class WrongResultError(AssertionError):
    """A command ended without an error, with a wrong result."""


def make_dicom(rng: Random, folder: Path, sources: Any) -> tuple[list[str], Command]:
    """Write a ramp with a damaged header."""
    from data.dicom_files import dicom
    from pydicom import config

    dtype, elements = MONOCHROME[rng.choice(sorted(MONOCHROME))]
    low = -1024 if dtype is np.int16 else 1
    ramp = np.linspace(low, 250 if dtype is np.uint8 else 4095 if "BitsStored" not in elements else 4000, 64)
    data = dicom(np.tile(ramp.astype(dtype), (48, 1)), **elements)
    names = [rng.choice(BITS if rng.random() < 0.3 else OTHERS) for _ in range(rng.choice((1, 1, 2)))]
    with config.disable_value_validation():
        for name in names:
            damage_element(rng, data, name)
        path = folder / "x.dcm"
        with contextlib.suppress(Exception):  # pydicom cannot write some values
            data.save_as(path, enforce_file_format=bool(rng.random() < 0.8), **_encoding(rng))
    if not path.exists() or not path.stat().st_size:
        return make_dicom(rng, folder, sources)
    return ["read", str(path), "any" if set(names) & {*BITS, "TransferSyntaxUID"} else "ramp", *names], read_ramp


def _encoding(rng: Random) -> dict[str, bool]:
    return rng.choice(({}, {}, {"implicit_vr": True, "little_endian": True}))


def damage_element(rng: Random, data: Any, name: str) -> None:
    """Remove, empty or change one element of a DICOM data set."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement

    tag = tag_for_keyword(name)
    owner = data.file_meta if name == "TransferSyntaxUID" else data
    action = rng.choice(("remove", "empty", "empty", "vr", "value"))
    if action == "remove":
        owner.pop(tag, None)
    elif action == "empty":
        owner[tag] = DataElement(tag, dictionary_VR(tag).partition(" ")[0], None)
    elif action == "vr":
        value = owner[tag].value if tag in owner else 0
        with contextlib.suppress(Exception):  # the value does not fit this VR
            owner[tag] = DataElement(tag, rng.choice(VRS), value)
    elif name in BITS:
        with contextlib.suppress(Exception):
            setattr(owner, name, rng.choice((0, 1, 2, 7, 8, 12, 15, 16, 31, 32, 64, 65535)))
    else:
        with contextlib.suppress(Exception):
            setattr(owner, name, rng.choice(UNUSUAL.get(name, ("", "X", "0", "\\", "a\\b"))))


def read_ramp(argv: Sequence[str]) -> None:
    """Read a DICOM file; a ramp must read as a ramp, unless it is refused."""
    with report_errors():
        image = np.asarray(read_image(argv[1])).astype(int)
    row = image[len(image) // 2, :, 0]
    steps = np.diff(row)
    if argv[2] == "ramp" and not ((np.all(steps >= 0) or np.all(steps <= 0)) and abs(row[-1] - row[0]) >= 150):
        raise WrongResultError(f"the ramp reads as {row[::9].tolist()}")


SHAPE = (5, 8)


def make_features(rng: Random, folder: Path, sources: Any) -> tuple[list[str], Command]:
    """Write a feature cache of two parts, and damage one to three of its files."""
    for part in range(2):
        cache = FeatureCache(folder / "cache", SHAPE, torch.float32)
        numbers = range(10 * part, 10 * part + rng.randint(1, 10))
        cache.put([_digest(number) for number in numbers], torch.stack([_features(number) for number in numbers]))
        cache.flush()
    for _ in range(rng.randint(1, 3)):
        damage_file(rng, rng.choice(sorted(path for path in (folder / "cache").iterdir() if path.is_file())))
    return ["features", str(folder / "cache")], read_features


def damage_file(rng: Random, path: Path) -> None:
    """Flip bits, cut, extend, repeat, empty, remove or exchange a file."""
    data = bytearray(path.read_bytes()) or bytearray(b"x")
    action, at = rng.choice(("flip", "flip", "flip", "cut", "insert", "delete", "zero", "remove", "swap")), 0
    at = rng.randrange(len(data))
    if action == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif action == "cut":
        del data[at:]
    elif action == "insert":
        data[at:at] = rng.randbytes(rng.choice((1, 8, 24, 160)))
    elif action == "delete":
        del data[at : at + rng.choice((1, 8, 24, 160))]
    elif action == "zero":
        data[:] = bytes(len(data))
    elif action == "swap":
        data[:] = rng.choice([other for other in path.parent.iterdir() if other.is_file()]).read_bytes()
    if action == "remove":
        path.unlink()
        if not any(other.is_file() for other in path.parent.iterdir()):
            path.touch()
    else:
        path.write_bytes(data)


def read_features(argv: Sequence[str]) -> None:
    """Read 20 images, store those that are missing, and read all of them again."""
    cache = FeatureCache(Path(argv[1]), SHAPE, torch.float32)
    found = {number: cache.get(_digest(number)) for number in range(20)}
    if wrong := [
        number for number, got in found.items() if got is not None and not torch.equal(got, _features(number))
    ]:
        raise WrongResultError(f"wrong features of images {wrong}")
    missing = [number for number, got in found.items() if got is None]
    if missing:
        cache.put([_digest(number) for number in missing], torch.stack([_features(number) for number in missing]))
        cache.flush()
    later = FeatureCache(Path(argv[1]), SHAPE, torch.float32)
    for number in range(20):
        got = later.get(_digest(number))
        if got is None or not torch.equal(got, _features(number)):
            raise WrongResultError(f"the features of image {number} were not stored again")


def _digest(number: int) -> bytes:
    return number.to_bytes(DIGEST_BYTES, "big")


def _features(number: int) -> torch.Tensor:
    return torch.arange(SHAPE[0] * SHAPE[1], dtype=torch.float32).view(SHAPE) + 1000 * number


def make_pairs(rng: Random, folder: Path, sources: Any) -> tuple[list[str], Command]:
    """Choose two commands that write into one folder, and the delay of the second one."""
    from fuzz_inputs import TRAIN, medcap

    kind, out = rng.choices(("train", "publish", "evaluate"), (50, 48, 2))[0], folder / "out"
    seeds = rng.choice(((1, 1), (1, 2)))
    if kind == "train":
        keys = {**sources.recipe(out), "data_dir": str(sources.data), "max_steps": 1, "eval_strategy": "no",
                "save_strategy": "no", "load_best_model_at_end": False, "feature_cache": "off"}  # fmt: skip
        options = [f"--{key}={value}" for key, value in keys.items()]
        argvs = [[*options, f"--seed={seed}"] for seed in seeds]
        command = TRAIN
    elif kind == "evaluate":
        common = ["--data", str(sources.data), "--out", str(out), "--num_beams", "1", "--feature_cache", "off"]
        models = [str(sources.base), str(sources.run / "adapter")]
        argvs = [["evaluate", "--model", models[seed % 2], *common, "--max_new_tokens", "4"] for seed in seeds]
        command = medcap
    else:
        runs = [sources.run, shutil.copytree(sources.run, folder / "run")]
        argvs = [["publish", str(runs[seed % 2]), "--to", str(out)] for seed in seeds]
        command = medcap
    return [kind, str(folder), str(rng.uniform(0, 1.5))], lambda argv: run_pair(argv, argvs, command)


def run_pair(argv: Sequence[str], argvs: Sequence[list[str]], command: Command) -> None:
    """Run two commands in forked processes, and check their statuses, their output and the folder."""
    folder, delay = Path(argv[1]), float(argv[2])
    pids = []
    for number, arguments in enumerate(argvs):
        pids.append(_fork(folder / f"log-{number}", arguments, command))
        if number == 0:
            time.sleep(delay)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    logs = [(folder / f"log-{number}").read_text(errors="replace") for number in range(2)]
    if any(status not in (0, 1, 2) for status in statuses) or 0 not in statuses:
        raise WrongResultError(f"statuses {statuses}: {logs}")
    if any("Traceback" in log for log in logs):
        raise WrongResultError(f"a traceback: {logs}")
    if partial := [path.name for path in folder.rglob("*.part")]:
        raise WrongResultError(f"left {partial}")
    _check_one_of(argvs, statuses, folder / "out", command)


def _check_one_of(argvs: Sequence[list[str]], statuses: Sequence[int], out: Path, command: Command) -> None:
    """Compare the folder with what each command that finished writes alone."""
    actual, alone = _content(out), []
    for number, arguments in enumerate(argvs):
        if statuses[number] == 0:
            shutil.rmtree(out)
            pid = _fork(out.with_name("log-alone"), arguments, command)
            os.waitpid(pid, 0)
            alone.append(_content(out))
    if actual not in alone:
        differing = [name for name in {*actual, *alone[0]} if actual.get(name) != alone[0].get(name)]
        raise WrongResultError(f"the folder is not what one command writes alone: {sorted(differing)}, {statuses}")


def _content(out: Path) -> dict[str, bytes]:
    """Return the names of all files, with the bytes of those that hold no times."""
    exact = (".safetensors", ".csv", "recipe.yaml")
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() if path.name.endswith(exact) else b"" for path in files}


def _fork(log: Path, arguments: list[str], command: Command) -> int:
    """Run a command in a forked process; its output goes to `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            command(arguments)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc(file=file)
            status = 70
        finally:
            file.flush()
            os._exit(status)
