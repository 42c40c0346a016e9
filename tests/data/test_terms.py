"""Terms are matched as complete words; the lexicons are well-formed."""

import tracemalloc

import pytest

from medcap.data.terms import COLUMNS, FOLDER, Lexicon, read_lexicon, read_rows, split_words
from medcap.metrics.clinical.facts import extract_facts

LEXICONS = ("finding", "region", "modality", "laterality", "context")
KINDS = {
    "context": {"forward", "backward", "prefix", "pseudo", "end", "opener", "preposition", "exception"},
}  # fmt: skip


def terms(lexicon: Lexicon, text: str) -> list[str]:
    return [mention.term for mention in lexicon.mentions(split_words(text))]


MATCHES = {
    "a word inside a word": ([("mass", "mass")], "massive", []),
    "plural": ([("mass", "mass")], "two masses", ["mass"]),
    "british spelling": ([("edema", "edema")], "Oedema and haematoma", ["edema"]),
    "a stem": ([("opacity", "opacit*")], "opacities", ["opacity"]),
    "an ending": ([("itis", "*itis")], "Pancreatitis", ["itis"]),
    "any word between": ([("node", "enlarged ? node")], "enlarged hilar nodes", ["node"]),
    "a phrase with a hyphen": ([("x", "x ray")], "an X-ray", ["x"]),
    "a phrase across a comma": ([("x", "x ray")], "at x, ray", []),
    "capitals match only capitals": ([("ultrasound", "US")], "US and us", ["ultrasound"]),
    "any case in a text without capitals": ([("ultrasound", "US")], "us of the liver", ["ultrasound"]),
    "the longest synonym": ([("pelvis", "pelvis"), ("abdomen", "renal pelvis")], "renal pelvis", ["abdomen"]),
    "ignored": ([("arm", "arm"), ("(ignored)", "c arm")], "C-arm and arm", ["arm"]),
    "two terms": ([("left + right", "bilateral")], "bilateral", ["left", "right"]),
    "the word itself": ([("*", "*itis")], "Pancreatitis", ["pancreatitis"]),
    "no words": ([("mass", "mass")], "", []),
}


@pytest.mark.parametrize(("rows", "text", "expected"), MATCHES.values(), ids=MATCHES)
def test_words_are_matched_as_words(rows, text, expected):
    assert terms(Lexicon(rows), text) == expected


@pytest.mark.parametrize("name", LEXICONS)
def test_every_row_has_a_term_synonyms_a_kind_and_a_source(name):
    header = (FOLDER / f"{name}.csv").read_text(encoding="utf-8").partition("\n")[0]
    assert header == ",".join(COLUMNS)
    for row in read_rows(name):
        assert all(row[column] for column in COLUMNS), row
        assert row["kind"] in KINDS.get(name, {name}), row


@pytest.mark.parametrize("name", LEXICONS)
def test_every_synonym_is_found_as_its_own_term(name):
    """A synonym that is shadowed by another one, or ignored, is a mistake in the file."""
    lexicon = (
        read_lexicon(name) if name != "context" else Lexicon((row["term"], row["synonyms"]) for row in read_rows(name))
    )
    for row in read_rows(name):
        for synonym in row["synonyms"].split("; "):
            text = synonym.replace("?", "word").replace("*", "a")
            if row["term"] not in ("(ignored)", "*") and row["kind"] not in ("opener", "preposition", "exception"):
                found = terms(lexicon, text)
                assert set(row["term"].split(" + ")) & set(found), (row["term"], synonym, found)


def test_memory_does_not_grow_with_the_square_of_a_words_length():
    tracemalloc.start()
    extract_facts("x" * 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
