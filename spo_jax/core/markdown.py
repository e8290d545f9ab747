"""Texts of others in Markdown: prompts, names of files, what a program printed."""

import re


def plain(text: str) -> str:
    """Writes a text so that Markdown shows it as it is, in one line, also in a table."""
    return re.sub(r"([\\`*_{}\[\]<>|~$])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Writes a text as a span of code in one line, also in a table, where a grave accent becomes an apostrophe."""
    shown = " ".join(text.split()).replace("`", "'").replace("|", r"\|")
    return f"`{shown}`"
