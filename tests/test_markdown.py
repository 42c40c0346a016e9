"""Captions, names and values are escaped in Markdown."""

import pytest

from medcap.markdown import code, escape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 3.5 cm mass (arrow), right-sided; T2_map", "a 3.5 cm mass (arrow), right-sided; T2_map"),
        ("_it_ __b__ _", "&#95;it&#95; &#95;&#95;b&#95;&#95; &#95;"),
        ("<b> | https://x", "&#60;b&#62; &#124; https&#58;//x"),
        ("two\n\nlines ", "two lines"),
        ("a\x1b[31m\u202eb", "a&#92;u001b&#91;31m&#92;u202eb"),
        (7, "7"),
    ],
)
def test_escape_replaces_markdown_and_html(text, expected):
    assert escape(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", '<code>""</code>'),
        ("an image of ", "`an image of `"),
        ("a|b", r"`a\|b`"),
        (r"a\|b", r'<code>"a&#92;&#92;&#124;b"</code>'),
        ("a\x1bb", r'<code>"a&#92;u001bb"</code>'),
        ("a`b", '<code>"a&#96;b"</code>'),
        (None, "`null`"),
        (["q", 1], '`["q", 1]`'),
    ],
)
def test_code_is_valid_in_a_table(value, expected):
    assert code(value) == expected
