"""Adapters of every family are loaded, merged and published, and their captions stay the same."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_bases
from peft import PeftModel
from test_families import images, own_caption
from tiny_runs import PROMPT, write_run

from medcap.cli import main
from medcap.data.detokenize import detokenize
from medcap.inference import load_captioner
from medcap.modeling.adapter import image_size_of
from medcap.modeling.families import family_of
from medcap.modeling.load import load_base
from medcap.publish.merge import merge
from medcap.recipe import RecipeError


@pytest.mark.parametrize("name", tiny_bases.MAKERS)
def test_adapter_loads_with_its_recorded_size_and_is_merged(name, tmp_path):
    adapter = write_run(tmp_path, name) / "adapter"
    base, processor = load_base(str(tiny_bases.base(name)))
    family = family_of(base, processor)
    PeftModel.from_pretrained(base, adapter).eval()
    captioner = load_captioner(str(adapter))
    expected = [own_caption(family, number, captioner.generation_config) for number in range(2)]
    assert captioner.caption(images(2)) == expected
    assert expected != [
        own_caption(tiny_bases.loaded(name), number, captioner.generation_config) for number in range(2)
    ]
    merged = family_of(merge(adapter), processor)
    assert [own_caption(merged, number, captioner.generation_config) for number in range(2)] == expected


@pytest.mark.parametrize("name", ["llava", "instructblip", "gemma3"])
def test_families_without_image_size_accept_that_of_the_processor_only(name):
    load_base(str(tiny_bases.base(name)), image_size=32)
    with pytest.raises(RecipeError, match="image_size is 48; images have the size of the processor: remove the key"):
        load_base(str(tiny_bases.base(name)), image_size=48)


def test_processor_that_crops_names_no_image_size(tmp_path):
    settings = {"image_processor": {"size": {"height": 256, "width": 256}, "do_center_crop": True}}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert image_size_of(str(tmp_path)) is None
    settings["image_processor"]["do_center_crop"] = False
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert image_size_of(str(tmp_path)) == 256


def usage_code(release):
    """Return the Python example of a release's card."""
    return re.search(r"^```python\n(.*?)^```$", (release / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]


RUNNER = """
import json, os, sys, traceback
import no_video
no_video.install()
sys.modules["medcap"] = None
results = []
for folder, code in json.load(sys.stdin):
    os.chdir(folder)
    names = {"captions": []}
    try:
        exec(code, names)
        results.append(names["captions"])
    except Exception:
        results.append(traceback.format_exc())
print(json.dumps(results))
"""


def run_without_medcap(programs):
    """Run (folder, Python code) in one process in which medcap cannot be imported; return the `captions` of each."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        input=json.dumps([(str(folder), code) for folder, code in programs]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The CSV file of a test split of two images; read-only."""
    folder = tmp_path_factory.mktemp("data")
    for number, image in enumerate(images(2)):
        image.save(folder / f"{number}.png")
    (folder / "x.csv").write_text("file_name,caption,split\n0.png,a large cyst,test\n1.png,axial mri,test\n")
    return folder / "x.csv"


def evaluated(run, data):
    """Evaluate the adapter of a run and return its captions."""
    main(["evaluate", "--model", str(run / "adapter"), "--data", str(data), "--out", str(run / "eval")])
    rows = list(csv.DictReader((run / "eval" / "predictions.csv").open(newline="")))
    return [row["Caption"] for row in sorted(rows, key=lambda row: row["ID"])]


CASES = [
    *((name, PROMPT, None) for name in tiny_bases.MAKERS),
    ("vit-gpt2", "", 48),  # another size than the encoder's
    ("dinov2-bert", "", 64),  # the encoder interpolates on its own
    ("blip2-opt", "", None),
    ("llava", "", None),
]


@pytest.fixture(scope="module")
def cards(data, tmp_path_factory):
    """Return {case: (code of the card for two images, captions of the evaluation, captions of the code)}."""
    cards = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("card")
        name, prompt, image_size = case
        run, release = write_run(folder / "run", name, prompt, image_size), folder / "release"
        captions = evaluated(run, data)
        main(["publish", str(run), "--to", str(release)])
        (release / name).symlink_to(tiny_bases.base(name))  # the user's copy of the base
        code = usage_code(release).replace("print(caption)", "captions.append(caption.strip())")
        code = "\n".join(
            code.replace('"image.png"', repr(str(data.with_name(f"{number}.png")))) for number in range(2)
        )
        cards[case] = (release, code, captions)
    printed = run_without_medcap([card[:2] for card in cards.values()])
    return {case: (*card[1:], own) for (case, card), own in zip(cards.items(), printed, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_code_of_the_card_generates_the_evaluated_captions(case, cards):
    name, _, image_size = case
    code, captions, printed = cards[case]
    assert isinstance(printed, list), printed
    assert [detokenize(text) if name == "dinov2-bert" else text for text in printed] == captions
    assert len(set(captions)) == 2
    assert ("interpolate_pos_encoding=True" in code) == (image_size == 48)
