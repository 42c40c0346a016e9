"""The audit of a data set with planted faults, and its page and summary."""

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
from medcap.data.load import load_data
from medcap.data.rocov2 import read_rocov2
from medcap.data.selection import Selection, drop_counts
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


def re_encoded(data, scale=0.6, quality=55):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    small = image.resize((int(image.width * scale), int(image.height * scale)))
    small.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Phantoms with an image of train re-encoded in test, a copy within valid, an article in train and test, a blank
    caption, a broken and a missing image.
    """
    folder = tmp_path_factory.mktemp("planted") / "data"
    write_phantom(folder, train=40, valid=10, test=10)
    add_image(folder, "test", "leak", re_encoded(image_bytes(folder, "train", 3)), "the same x-ray")
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


def test_re_encoded_image_is_found_across_splits(report):
    (group,) = [group for group in report["similar_images"]["groups"] if "leak" in str(group["images"])]
    assert [(image["split"], image["image_id"]) for image in group["images"]] == [
        ("train", "PHANTOM_train_000004"),
        ("test", "leak"),
    ]
    assert (group["across_splits"], group["same_pixels"]) == (True, False)


def test_only_planted_images_are_similar(report):
    similar = report["similar_images"]
    assert similar["near_duplicates"] == {"within_a_split": 0, "across_splits": 1}
    # "blank" has no caption and is not counted as a copy
    assert similar["same_pixels"] == {"within_a_split": 1, "across_splits": 0}
    assert [len(group["images"]) for group in similar["groups"]] == [2, 2]


def test_article_in_two_splits_is_reported_with_its_images(report):
    assert report["groups_across_splits"] == {
        "PMC99": {"train": ["PHANTOM_train_000007"], "test": ["PHANTOM_test_000002"]}
    }


def test_dropped_by_agrees_with_the_rows_that_options_drop(report, planted):
    data = load_data(planted, selection=Selection(exclude_leaks=True, max_broken=0.2))
    counts = {split: drop_counts(rows) for split, rows in data.items()}
    leaked = {split: n["leaked_image"] + n["leaked_group"] for split, n in counts.items()}
    assert leaked == {"train": 2, "valid": 0, "test": 0} == report["dropped_by"]["exclude_leaks"]
    assert not {"PHANTOM_train_000004", "PHANTOM_train_000007"} & set(data["train"]["image_id"])
    repeated = load_data(planted, selection=Selection(dedupe=True, max_broken=0.2))
    assert report["dropped_by"]["dedupe"] == {s: drop_counts(rows)["duplicate"] for s, rows in repeated.items()}
    commercial = load_data(planted, None, Selection(license_filter="commercial", max_broken=0.2), ["train", "test"])
    assert {split: rows["image_id"][:] for split, rows in commercial.items()} == {
        "train": ["PHANTOM_train_000007"], "test": ["PHANTOM_test_000002"],
    }  # fmt: skip


def test_faults_are_reported_with_ids(report):
    assert report["splits"]["train"]["blank_captions"] == ["blank"]
    assert report["splits"]["test"]["missing_images"] == ["gone"]
    assert list(report["splits"]["train"]["broken_images"]) == ["broken"]
    assert "not an image" in report["splits"]["train"]["broken_images"]["broken"]


def test_caption_lengths_are_counted_in_words_and_tokens(tmp_path, tiny_base):
    captions = ["one two three", "left " * 7, "\u00a0left\u202fright ", ""]
    write_rows(
        tmp_path / "test_captions.csv", [["ID", "Caption"], *([f"i{n}", text] for n, text in enumerate(captions))]
    )
    tokenizer = audit_page.load_tokenizer(str(tiny_base))
    found = audit(read_rocov2(tmp_path), {}, tokenizer, limits=[5, 9])["splits"]["test"]
    assert found["words"]["n"] == 3
    assert (found["words"]["mean"], found["words"]["median"], found["words"]["max"]) == (4.0, 3.0, 7)
    assert found["words"]["histogram"][:3] == [2, 1, 0]
    # [CLS] and [SEP] count: 7 + 2 fit into 9; "one" and "two" have several tokens
    assert found["tokens"]["truncated"] == {"5": 2, "9": 1}
    assert found["missing_images"] == ["i0", "i1", "i2", "i3"]


def test_concepts_are_counted_by_split(report):
    xray = report["concepts"]["C1306645"]
    assert xray["name"] == "Plain x-ray"
    assert sum(xray[split] for split in ("train", "valid", "test")) > 0
    counts = report["splits"]["train"]["modality_by_concepts"]
    assert sum(counts.values()) == 42
    assert counts["unknown"] == 2  # the two that were added have no concepts


def test_modality_by_text_agrees_with_the_concepts_of_phantoms(report):
    by_words = {k: n for k, n in report["splits"]["train"]["modality_by_text"].items() if k != "unknown"}
    by_concepts = report["splits"]["train"]["modality_by_concepts"]
    assert all(n <= by_concepts[name] + 1 for name, n in by_words.items())  # "an x-ray" of the broken image
    assert sum(by_words.values()) > 30


def test_page_shows_images_and_escapes_text(report, planted):
    text = page(report, read_rocov2(planted), "<script>data</script>")
    assert text.count('src="data:image/jpeg;base64,') == 4
    assert "&lt;script&gt;data" in text
    assert "<script" not in text
    assert "the same &lt;b&gt;scan" in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # self-contained
    assert "PMC99" in text


def test_summary_lists_faults(report):
    text = summary(report)
    for line in (
        "! missing images: 1",
        "! images that cannot be read: 1",
        "! blank captions: 1",
        "! articles, patients or cases in more than one split: 1",
        "! images across splits: 0 groups with the same pixels, 1 nearly the same",
        "! exclude_leaks would leave out 2 of train, 0 of valid, 0 of test",
    ):
        assert line in text


def test_only_unknown_sources_are_marked_in_clean_data(phantoms):
    marked = [v["text"] for v in audit_page.verdicts(audit(read_rocov2(phantoms), {}, num_proc=1)) if v["bad"]]
    assert marked == [
        "articles, patients and cases are unknown: not checked whether any is in more than one split",
        "licenses of single images are not known",
    ]


def test_command_writes_report_and_page_and_prints_summary(planted, tiny_base, tmp_path):
    out = tmp_path / "new" / "report.json"
    command = ["data", "audit", str(planted), "--out", str(out), "--tokenizer", str(tiny_base)]
    command += ["--max_caption_tokens", "16"]
    done = subprocess.run([sys.executable, "-m", "medcap.cli", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cut by max_caption_tokens 16" in done.stdout
    assert done.stdout.rstrip().endswith(f"{out} and {out.with_suffix('.html')}")
    assert json.loads(out.read_text())["splits"]["train"]["rows"] == 42
    assert sorted(path.name for path in out.parent.iterdir()) == ["report.html", "report.json"]
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "script-src 'none'\">" in page  # the page has no script
    assert "<script" not in page


def test_tokens_are_not_counted_without_tokenizer(planted, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", _refuse)
    monkeypatch.setattr("huggingface_hub.file_exists", _refuse)
    report = write_audit(str(planted), tmp_path / "report.json")
    assert report["splits"]["train"]["tokens"] is None
    assert "tokens are not counted; --tokenizer takes a folder" in caplog.text


def _refuse(*_, **__):
    raise OSError("no network")


def test_split_without_captions_has_counts_of_zero(tmp_path):
    write_phantom(tmp_path / "data", train=3, valid=2, test=2)
    path = tmp_path / "data" / "valid_captions.csv"
    write_rows(path, [[image_id, caption if image_id == "ID" else " "] for image_id, caption in read_rows(path)])
    report = audit(read_rocov2(tmp_path / "data"), {})
    valid = report["splits"]["valid"]
    assert (valid["words"]["n"], sum(valid["words"]["histogram"])) == (0, 0)
    assert "blank captions" in summary(report)
