"""Texts of others do nothing in Markdown, by a parser of it."""

import markdown
import pytest

from spo_jax.core.markdown import code, plain


@pytest.mark.parametrize(
    "text",
    ["**a** _b_ `c`", "<img src=x onerror=alert(1)>", "a | b", "[a](http://b) ![c](d)", "a\n\n# b", r"\*a\*", "`|"],
)
def test_a_text_in_a_table_does_nothing(text):
    table = markdown.markdown(f"| {plain(text)} | x |\n|---|---|\n| {code(text)} | x |", extensions=["tables"])
    assert table.count("<th>x</th>") == table.count("<td>x</td>") == 1
    assert table.count("<th>") == table.count("<td>") == 2
    assert table.count("<code>") == 1
    assert not any(tag in table for tag in ("<em>", "<strong>", "<img", "<a ", "<h1>"))


def test_a_text_is_escaped_and_in_one_line():
    assert plain("a_b|c\n$d$ (e)") == r"a\_b\|c \$d\$ (e)"
    assert code("a `b` | c\nd") == r"`a 'b' \| c d`"
