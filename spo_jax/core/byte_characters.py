"""The printable characters that stand for bytes in byte-level vocabularies such as CLIP's."""

import functools


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """Returns the character of each of the 256 bytes in the order of CLIP's vocabulary, which is GPT-2's table."""
    return tuple(_table().values())


def spell_bytes(text: str) -> str:
    """Spells a text as the characters of its UTF-8 bytes."""
    table = _table()
    return "".join(table[byte] for byte in text.encode())


@functools.cache
def _table() -> dict[int, str]:
    """Maps bytes to characters: those that are printable in Latin-1 to themselves, and the others to what follows."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
