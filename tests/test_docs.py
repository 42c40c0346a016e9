"""The documentation site builds without a broken link, and its reference is complete. pytest tests/test_docs.py"""

import ast
import re
import sys
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

import medcap
from medcap.metrics.clinical.accuracy import FactScores, PrecisionRecall
from medcap.metrics.clinical.facts import KINDS
from medcap.metrics.coco import METRICS
from medcap.metrics.diversity import CaptionSummary

sys.path.insert(0, str(ROOT / "scripts"))
import reference

DOCS = ROOT / "docs"
KEYS_PAGE = (DOCS / "recipe-keys.md").read_text(encoding="utf-8")
TRAINER = "## Run folder and length"  # the first heading of keys whose defaults are those of transformers
OWN_KEYS = {name for name, field in reference.FIELDS.items() if "range" in field.metadata}


def test_every_key_has_a_text_and_says_when_to_change_it() -> None:
    texts = {key: text for section in reference.read_texts().values() for key, text in section.items()}
    missing = reference.KEYS - texts.keys()
    assert not missing, "write a line in scripts/recipe_keys.yaml for each"
    for key, text in texts.items():
        meaning, when = text if key not in OWN_KEYS else ("own help", text)
        assert meaning
        assert len(when) > 5, key


def test_page_of_the_keys_is_current() -> None:
    written, now = KEYS_PAGE, reference.recipe_keys_page()
    if f"transformers {metadata.version('transformers')}." not in written:  # with another version, medcap's keys alone
        written, now = (re.sub(r"transformers [\d.]+\n", "", page.partition(TRAINER)[0]) for page in (written, now))
    assert written == now, "run: python scripts/reference.py"


@pytest.mark.parametrize("words", reference.command_names(), ids=" ".join)
def test_every_command_is_on_its_page(words) -> None:
    section = reference.commands_page().split(f"## {' '.join(words)}\n")[1].split("\n## ")[0]
    assert f"usage: {' '.join(words)} " in section


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    named = re.findall(r"^::: [\w.]+\.(\w+)$", (DOCS / "api.md").read_text(), re.M)
    assert sorted(named) == sorted(medcap.__all__)


def test_example_of_the_api_is_that_of_the_readme_which_is_executed() -> None:
    (example,) = re.findall(r"```python\n(.+?)```", (DOCS / "api.md").read_text(), re.DOTALL)
    readme = [line.split("  #")[0] for line in (ROOT / "README.md").read_text().splitlines()]
    assert [line for line in example.splitlines() if line and line not in readme] == []


def test_every_score_is_explained() -> None:
    text = (DOCS / "scores.md").read_text()
    names = {"bleu": "BLEU-1 to BLEU-4", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
    assert {re.sub(r"_\d$", "", metric) for metric in METRICS} == names.keys()
    keys = [*KINDS, *(field.name for kind in (CaptionSummary, PrecisionRecall) for field in fields(kind))]
    keys += [field.name for field in fields(FactScores) if field.name != "kinds"]
    assert [name for name in names.values() if f"| {name} " not in text and f"| {name} 1.5 " not in text] == []
    assert [key for key in keys if f"`{key}`" not in text] == []


def templates() -> list[str]:
    """Return every text in the code of medcap, with … for each value that is put into it."""
    found = []
    for path in (ROOT / "medcap").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[\d.,]*[sdgrf]", "…", node.value))
    return found


TEMPLATES = templates()
MESSAGES = [
    (path.name, line.strip())
    for path in (DOCS / "faq.md", DOCS / "hospital.md")
    for block in re.findall(r"^ *```text\n(.+?)```", path.read_text(encoding="utf-8"), re.M | re.S)
    for line in block.strip().splitlines()
]


@pytest.mark.parametrize(("page", "message"), MESSAGES, ids=[message[:50] for _, message in MESSAGES])
def test_every_quoted_message_is_one_of_medcap(page, message) -> None:
    assert any(message in text for text in TEMPLATES)


def test_messages_are_found() -> None:
    assert len(MESSAGES) > 20


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
        config.plugins.run_event("startup", command="build", dirty=False)
        build(config)  # exits if a link is broken
    return folder


def test_site_builds_without_a_warning(site) -> None:
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} <= {path.name for path in site.glob("*.html")}


def test_pages_load_nothing_from_another_server(site) -> None:
    loaded = r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+"
    assert [match for page in site.glob("*.html") for match in re.findall(loaded, page.read_text())] == []


def test_images_are_small() -> None:
    assert [path.name for path in (DOCS / "images").iterdir() if path.stat().st_size > 150_000] == []
