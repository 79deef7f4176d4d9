"""What the words of a policy that stand for formulas and schedules have in common: a name, and options by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from graphwd.errors import PolicyError
from graphwd.policy.yaml_source import Given, Located


def known_word(key: str, item: Located, words: Iterable[str]) -> str:
    """Reads a word of a table.

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
    word = item.value if isinstance(item.value, str) else ""
    if word in known:
        return word
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "a function of your own goes into a policy made in Python"
    raise PolicyError(f"{item.where}: {key} must be one of {', '.join(known)}, got {described(item.value)}; {hint}")


def check_options(
    what: str, item: Located, given: dict[str, Located], needed: Iterable[str], optional: Collection[str], example: str
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
        PolicyError: an option is unknown or missing.
    """
    needed = tuple(needed)
    for option, value in given.items():
        if option not in needed and option not in optional:
            raise PolicyError(f"{value.where}: the {what} has no option '{option}'; write {example}")
    if missing := [option for option in needed if option not in given]:
        raise PolicyError(f"{item.where}: the {what} needs '{missing[0]}'; write {example}")


def described(value: object) -> str:
    """What stands where something else should, for a message."""
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
