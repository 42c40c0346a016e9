"""Code, messages and documents use the field's terms: the words on the left are replaced by those on the right."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPLACED = {
    r"pictures?": "image",
    r"pictured": "shown",
    r"(?<!vision_)towers?": "vision encoder",
    r"frozen eyes": "frozen vision encoder",
    r"mend(?:s|ed|ing)?": "fix",
    r"anew": "again, from scratch",
    r"(?:go|goes|going|gone|went) on (?:with|from|training)": "resume",
    r"weights? (?:that )?learns?": "trainable parameters",
    r"does not look|looks at the image": "image dependence",
    r"wrong images": "shuffled images",
    r"times sooner": "speedup",
    r"reckon(?:s|ed|ing)?|foretold": "estimated",
    r"seed's way": "the original project",
    r"whole story": "end-to-end demo",
    r"restored surface|surface restored|restore_surface": "detokenization",
    r"hush|quieten(?:s|ed)?": "logging setup",
    r"half a file|half written": "atomic write",
    r"careful loop": "reference implementation",
    r"in the place of": "instead of",
    r"likelihood": "log_probs",
    r"rehears(?:al|als|e|ed)": "dry run",
    r"real(?:ly)? differen(?:t|ce|ces)": "statistically significant difference",
    r"heed(?:s|ed|ing)?": "handle, follow",
    r"is told of": "",
    r"is it well": "",
    r"no medcat": "does not use MedCAT",
    r"said (?:of|about) (?:the )?(?:images?|pictures?)": "factual accuracy",
    r"greatest": "max",
    r"shares? of|[a-z]+_share": "fraction of",
    r"makes? room|made room": "free disk space",
    r"bears? the name": "is named",
    r"nobody": "no one, or the subject itself",
}
PATTERN = re.compile("|".join(rf"(?<![a-z])(?:{words})(?![a-z])" for words in REPLACED), re.IGNORECASE)
# they quote captions, patterns of words in captions, or old names of keys
CAPTION_WORDS = {
    "CHANGELOG.md", "docs/traps.md", "medcap/data/detokenize.py",
    "medcap/phantom/tiny_base/README.md", "scripts/make_tiny_base.py",
}  # fmt: skip
FILES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.*", "medcap/**/*.py", "medcap/**/*.html", "medcap/**/*.md",
                    "scripts/*.py", "benchmarks/**/*.py", ".github/**/*.*", "Makefile", "*.toml", "*.cff")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.relative_to(ROOT).as_posix() not in CAPTION_WORDS
)  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_uses_the_terms_of_the_field(path: Path) -> None:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    found = [f"{path.name}:{number}: {match[0]!r}" for number, line in lines for match in PATTERN.finditer(line)]
    assert found == []


def test_replaced_words_are_found() -> None:
    for text in (
        "a Picture of",
        "wrong_pictures",
        "the frozen tower",
        "gone on with",
        "what was said about the image",
    ):
        assert PATTERN.search(text), text
    for text in ("an image", "shared", "at least", "goes on the market"):
        assert not PATTERN.search(text), text
