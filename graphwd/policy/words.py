"""What the words of a policy that stand for formulas and schedules have in common: a name, and options by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from graphwd.errors import PolicyError
from graphwd.policy.yaml_source import Located


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
    if item.value in known:
        return str(item.value)
    close = difflib.get_close_matches(str(item.value), known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "a function of your own goes into a policy made in Python"
    raise PolicyError(f"{item.where}: {key} must be one of {', '.join(known)}, got {item.value!r}; {hint}")


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
