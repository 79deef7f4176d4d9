"""The words of a policy: what is said of a wrong one, and how words with options are read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

from graphwd.policy.mistakes import Mistakes
from graphwd.policy.yaml_source import Given, Located

_NEAR = 0.6
"""How alike two words must be, by difflib, for one to be a misspelling of the other."""


def near(word: object, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str | None:
    """Finds the word that a wrong one was probably meant to be; case, spaces and punctuation do not count.

    Args:
        word: the wrong word; what is no text is near nothing.
        known: the right words.
        aliases: other names for some of them.

    Returns:
        The word; None where none is near, or where two are equally so.

    Examples:
        >>> near("Cuda_ConvNet", ["adamw", "cuda-convnet"])
        'cuda-convnet'
    """
    if not isinstance(word, str):
        return None
    forms = {_plain(each): each for each in known} | {_plain(name): each for name, each in (aliases or {}).items()}
    asked = difflib.SequenceMatcher(b=_plain(word)[:100])
    likeness: dict[str, float] = {}
    for form in forms:
        asked.set_seq1(form)
        likeness[form] = asked.ratio()
    best = max(likeness.values(), default=0)
    nearest = [form for form, ratio in likeness.items() if ratio == best]
    return forms[nearest[0]] if best >= _NEAR and len(nearest) == 1 else None


def did_you_mean(word: object, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """The end of a message on a wrong word, as `near`; empty where no word is near."""
    meant = near(word, known, aliases)
    return f"; did you mean '{meant}'?" if meant else ""


def _plain(word: str) -> str:
    return re.sub(r"[\W_]+", "", word).lower()


def describe(value: object) -> str:
    """What a value is, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if isinstance(value, Given):
        return f"a {type(value.value).__name__}"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits.
        return "an enormous number"
    return text if len(text) <= 60 else text[:57] + "..."


def known_word(key: str, item: Located, words: Iterable[str]) -> str:
    """Reads a word of a table to which Python can add.

    Args:
        key: the key that it is the value of.
        item: the word.
        words: the table.

    Returns:
        The word.

    Raises:
        PolicyError: the table does not have it; the message names what it has, and the word that is near.
    """
    known = sorted(words)
    if item.value in known:
        return str(item.value)
    hint = did_you_mean(item.value, known) or "; a function of your own goes into a policy made in Python"
    raise item.error(f"{key} must be one of {', '.join(known)}, got {describe(item.value)}{hint}")


def check_options(
    what: str,
    item: Located,
    given: dict[str, Located],
    needed: Collection[str],
    optional: Collection[str],
    example: str,
) -> None:
    """Checks that the options of a word are all there, and no others.

    Args:
        what: the word and its kind, for errors.
        item: where the word stands.
        given: the options, by name.
        needed: the options that must be given.
        optional: the options that may be given.
        example: what to write instead.

    Raises:
        PolicyError: options are unknown, or one is missing.
    """
    known = [*needed, *optional]
    mistakes = Mistakes()
    for option, value in given.items():
        if option not in known:
            hint = did_you_mean(option, known)
            mistakes.add(value.error_here(f"the {what} has no option {describe(option)}; write {example}{hint}"))
    mistakes.check()
    if missing := [option for option in needed if option not in given]:
        raise item.error(f"the {what} needs '{missing[0]}'; write {example}")
