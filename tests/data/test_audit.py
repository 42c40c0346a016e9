"""The audit finds what was planted, counts what is there, and shows it in words and pictures."""

import csv
import io
import json
import re
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from medcap.data.audit import audit
from medcap.data.concepts import concept_names
from medcap.data.rocov2 import load_rocov2, read_rocov2
from medcap.data.selection import drop_counts
from medcap.phantom.dataset import write_phantom
from medcap.reporting import audit_page
from medcap.reporting.audit_page import page, summary, write_audit


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\r\n").writerows(rows)


def add_image(folder, split, image_id, data, caption, ending=".jpg"):
    with zipfile.ZipFile(folder / f"{split}_images.zip", "a") as archive:
        archive.writestr(f"{split}/{image_id}{ending}", data)
    write_rows(folder / f"{split}_captions.csv", [*read_rows(folder / f"{split}_captions.csv"), [image_id, caption]])


def image_bytes(folder, split, number):
    with zipfile.ZipFile(folder / f"{split}_images.zip") as archive:
        return archive.read(sorted(archive.namelist())[number])


def encoded_again(data, scale=0.6, quality=55):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    small = image.resize((int(image.width * scale), int(image.height * scale)))
    small.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Phantoms with a picture of train encoded again in test, a copy within valid, one article in train and test, a
    blank caption, a broken and a missing image.
    """
    folder = tmp_path_factory.mktemp("planted") / "data"
    write_phantom(folder, train=40, valid=10, test=10)
    add_image(folder, "test", "leak", encoded_again(image_bytes(folder, "train", 3)), "the same x-ray")
    add_image(folder, "valid", "copy", image_bytes(folder, "valid", 0), "the same <b>scan</b>")
    add_image(folder, "train", "blank", image_bytes(folder, "test", 5), "\u202f")
    add_image(folder, "train", "broken", b"<html>not found</html>", "an x-ray")
    write_rows(folder / "test_captions.csv", [*read_rows(folder / "test_captions.csv"), ["gone", "an x-ray"]])
    licences = read_rows(folder / "license_information.csv")
    for row in licences[1:]:
        row[1], row[2] = f"PMC{row[0][-6:]}_{row[0].split('_')[1]}", "CC BY-NC [A et al. (2020)]"
    for row in licences[1:]:
        if row[0] in ("PHANTOM_train_000007", "PHANTOM_test_000002"):
            row[1], row[2] = "PMC99", "CC BY [B et al. (2021)]"
    write_rows(folder / "license_information.csv", licences)
    return folder


@pytest.fixture(scope="module")
def report(planted):
    return audit(read_rocov2(planted), concept_names(planted), num_proc=1)


def test_a_picture_encoded_again_at_another_size_is_found_across_splits(report):
    (group,) = [group for group in report["similar_images"]["groups"] if "leak" in str(group["images"])]
    assert [(image["split"], image["image_id"]) for image in group["images"]] == [
        ("train", "PHANTOM_train_000004"),
        ("test", "leak"),
    ]
    assert (group["across_splits"], group["same_pixels"]) == (True, False)


def test_nothing_but_what_was_planted_is_alike(report):
    pictures = report["similar_images"]
    assert pictures["near_duplicates"] == {"within_a_split": 0, "across_splits": 1}
    assert pictures["same_pixels"] == {
        "within_a_split": 1,
        "across_splits": 0,
    }  # "blank", without a caption, is no copy
    assert [len(group["images"]) for group in pictures["groups"]] == [2, 2]


def test_an_article_in_two_splits_is_named_with_its_images(report):
    assert report["groups_across_splits"] == {
        "PMC99": {"train": ["PHANTOM_train_000007"], "test": ["PHANTOM_test_000002"]}
    }


def test_what_the_report_says_an_option_leaves_out_is_what_it_leaves_out(report, planted):
    data = load_rocov2(planted, exclude_leaks=True, max_broken=0.2)
    counts = {split: drop_counts(rows) for split, rows in data.items()}
    leaked = {split: n["leaked_image"] + n["leaked_group"] for split, n in counts.items()}
    assert leaked == {"train": 2, "valid": 0, "test": 0} == report["dropped_by"]["exclude_leaks"]
    assert not {"PHANTOM_train_000004", "PHANTOM_train_000007"} & set(data["train"]["image_id"])
    repeated = load_rocov2(planted, dedupe=True, max_broken=0.2)
    assert report["dropped_by"]["dedupe"] == {s: drop_counts(rows)["duplicate"] for s, rows in repeated.items()}
    free = load_rocov2(planted, license_filter="commercial", max_broken=0.2, splits=["train", "test"])
    assert {split: rows["image_id"][:] for split, rows in free.items()} == {
        "train": ["PHANTOM_train_000007"], "test": ["PHANTOM_test_000002"],
    }  # fmt: skip


def test_faults_are_named(report):
    assert report["splits"]["train"]["blank_captions"] == ["blank"]
    assert report["splits"]["test"]["missing_images"] == ["gone"]
    assert list(report["splits"]["train"]["broken_images"]) == ["broken"]
    assert "not an image" in report["splits"]["train"]["broken_images"]["broken"]


def test_lengths_are_those_of_the_captions(tmp_path, tiny_base):
    captions = ["one two three", "left " * 7, "\u00a0left\u202fright ", ""]
    write_rows(
        tmp_path / "test_captions.csv", [["ID", "Caption"], *([f"i{n}", text] for n, text in enumerate(captions))]
    )
    found = audit(read_rocov2(tmp_path), {}, audit_page.load_tokenizer(str(tiny_base)), limits=[5, 9])["splits"][
        "test"
    ]
    assert found["words"]["n"] == 3
    assert (found["words"]["mean"], found["words"]["median"], found["words"]["max"]) == (4.0, 3.0, 7)
    assert found["words"]["histogram"][:3] == [2, 1, 0]
    assert found["tokens"]["truncated"] == {
        "5": 2,
        "9": 1,
    }  # [CLS] and [SEP] counted: 7 + 2 fit into 9; "one" and "two" are spelt
    assert found["missing_images"] == ["i0", "i1", "i2", "i3"]


def test_concepts_are_counted_by_split_and_named(report):
    xray = report["concepts"]["C1306645"]
    assert xray["name"] == "Plain x-ray"
    assert sum(xray[split] for split in ("train", "valid", "test")) > 0
    shares = report["splits"]["train"]["modality_by_concepts"]
    assert sum(shares.values()) == 42
    assert shares["unknown"] == 2  # the two that were added have no concepts


def test_modality_in_words_agrees_with_the_concepts_of_phantoms(report):
    by_words = {k: n for k, n in report["splits"]["train"]["modality_by_text"].items() if k != "unknown"}
    by_concepts = report["splits"]["train"]["modality_by_concepts"]
    assert all(n <= by_concepts[name] + 1 for name, n in by_words.items())  # "an x-ray" of the broken image
    assert sum(by_words.values()) > 30


def test_the_page_shows_pictures_and_escapes_what_it_shows(report, planted):
    text = page(report, read_rocov2(planted), "<script>data</script>")
    assert text.count('src="data:image/jpeg;base64,') == 4
    assert "&lt;script&gt;data" in text
    assert "<script" not in text
    assert "the same &lt;b&gt;scan" in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # self-contained
    assert "PMC99" in text


def test_the_summary_says_what_is_wrong(report):
    text = summary(report)
    for line in (
        "! missing images: 1",
        "! images that cannot be read: 1",
        "! blank captions: 1",
        "! articles, patients or cases in more than one split: 1",
        "! pictures across splits: 0 groups with the same pixels, 1 nearly the same",
        "! exclude_leaks would leave out 2 of train, 0 of valid, 0 of test",
    ):
        assert line in text


def test_a_clean_data_set_has_nothing_marked_but_what_is_not_known(phantoms):
    marked = [v["text"] for v in audit_page.verdicts(audit(read_rocov2(phantoms), {}, num_proc=1)) if v["bad"]]
    assert marked == [
        "articles, patients and cases are not known: whether any is in more than one split cannot be said",
        "licences of single images are not known",
    ]


def test_the_command_leaves_report_and_page_and_prints_the_summary(planted, tiny_base, tmp_path):
    out = tmp_path / "new" / "report.json"
    command = [
        "data",
        "audit",
        str(planted),
        "--out",
        str(out),
        "--tokenizer",
        str(tiny_base),
        "--max_caption_tokens",
        "16",
    ]
    done = subprocess.run([sys.executable, "-m", "medcap.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cut by max_caption_tokens 16" in done.stdout
    assert done.stdout.rstrip().endswith(f"{out} and {out.with_suffix('.html')}")
    assert json.loads(out.read_text())["splits"]["train"]["rows"] == 42
    assert sorted(path.name for path in out.parent.iterdir()) == ["report.html", "report.json"]


def test_without_a_tokenizer_the_tokens_are_left_out_with_a_line(planted, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", _refuse)
    monkeypatch.setattr("huggingface_hub.file_exists", _refuse)
    report = write_audit(str(planted), tmp_path / "report.json")
    assert report["splits"]["train"]["tokens"] is None
    assert "tokens are not counted; --tokenizer takes a folder" in caplog.text


def _refuse(*_, **__):
    raise OSError("no network")


def test_a_split_without_any_caption_is_counted_as_that(tmp_path):
    write_phantom(tmp_path / "data", train=3, valid=2, test=2)
    path = tmp_path / "data" / "valid_captions.csv"
    write_rows(path, [[image_id, caption if image_id == "ID" else " "] for image_id, caption in read_rows(path)])
    report = audit(read_rocov2(tmp_path / "data"), {})
    valid = report["splits"]["valid"]
    assert (valid["words"]["n"], sum(valid["words"]["histogram"])) == (0, 0)
    assert "blank captions" in summary(report)
