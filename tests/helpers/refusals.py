"""Refusals in classes: what a message says, without what is only of one step."""

from __future__ import annotations

import re
from collections.abc import Mapping


def class_of(message: str) -> str:
    """A message without names."""
    text = re.sub(r"(?<!\w)'[^']*'", "'...'", message.split("\n")[0])
    text = re.sub(r"^.*?rules\[\d+\]: ", "", text)
    return re.sub(r"'\.\.\.'(, '\.\.\.'| and \d+ more)+", "'...'", text)[:130]


def print_table(refused: Mapping[tuple[str, ...], int], met: Mapping[tuple[str, ...], int]) -> None:
    """Prints how often each class was met; the last of a key is the class, the rest what was tried."""
    for (*tried, message), count in sorted(refused.items()):
        total = sum(number for key, number in met.items() if list(key[: len(tried)]) == tried)
        print(f"{' '.join(f'{each:12}' for each in tried)} {count:4} of {total:4}  {message}")
