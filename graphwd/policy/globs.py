"""Globs over names and over paths of names."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Iterator, Sequence


def composed(text: str) -> str:
    """A text in the one Unicode normal form in which names and patterns are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def glob_matches(name: str, pattern: str, separator: str = "/") -> bool:
    """Whether a pattern is a name, or a glob of all of it; ``*`` matches ``/``, too, and ``*/x`` also ``x``."""
    name, pattern = composed(name), composed(pattern)
    return name == pattern or any(fnmatch.fnmatchcase(name, form) for form in forms(pattern, separator))


def forms(pattern: str, separator: str) -> Iterator[str]:
    """A glob, and its rest where its first part matches nothing."""
    yield pattern
    if pattern.startswith("*" + separator):
        yield pattern[2:]


class Glob:
    """A glob as a machine that reads a text piece by piece; bit i of a state says that i tokens may be read."""

    def __init__(self, tokens: Sequence[str | None]) -> None:
        """Takes the regular expression of each character that the glob matches; None for a ``*``."""
        self._stars = [token is None for token in tokens]
        self._patterns = [None if token is None else re.compile(token, re.DOTALL) for token in tokens]
        self._seen: dict[tuple[int, str], int] = {}
        self.start = self._rest(1)
        self.end = 1 << len(tokens)

    @classmethod
    def of(cls, pattern: str) -> Glob:
        """The machine of a glob."""
        return cls(_tokens(pattern))

    @classmethod
    def literal(cls, text: str) -> Glob:
        """The machine that matches one text alone."""
        return cls([re.escape(character) for character in text])

    def after(self, state: int, text: str) -> int:
        """The state after a text."""
        key = (state, text)
        if key not in self._seen:
            for character in text:
                state = self._step(state, character)
            self._seen[key] = state
        return self._seen[key]

    def _step(self, state: int, character: str) -> int:
        after = 0
        for i, pattern in enumerate(self._patterns):
            if state >> i & 1:
                if pattern is None:
                    after |= 1 << i
                elif pattern.fullmatch(character):
                    after |= 1 << i + 1
        return self._rest(after)

    def _rest(self, state: int) -> int:
        """A state, with the stars that may match nothing."""
        for i, star in enumerate(self._stars):
            if star and state >> i & 1:
                state |= 1 << i + 1
        return state


def _tokens(glob: str) -> list[str | None]:
    """The regular expression of each character that a glob matches; None for a ``*``."""
    tokens: list[str | None] = []
    i = 0
    while i < len(glob):
        length = 1
        if glob[i] == "[" and (end := glob.find("]", i + (3 if glob[i + 1 : i + 2] == "!" else 2))) > 0:
            length = end - i + 1
        piece = glob[i : i + length]
        tokens.append(None if piece == "*" else fnmatch.translate(piece))
        i += length
    return tokens
