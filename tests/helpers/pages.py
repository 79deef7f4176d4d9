"""The policies that the pages of ``graphwd help`` show."""

from __future__ import annotations

from importlib import resources


def policies_in(topic: str, section: str | None) -> list[str]:
    """The YAML blocks of a section of a page, in order.

    Args:
        topic: the page.
        section: the section's heading; None for the whole page.
    """
    return blocks_in(topic, section, "yaml")


def blocks_in(topic: str, section: str | None, language: str) -> list[str]:
    """The fenced blocks of one language, as `policies_in`."""
    text = (resources.files("graphwd") / "docs" / f"{topic}.md").read_text(encoding="utf-8")
    if section is not None:
        _, found, rest = text.partition(f"\n## {section}\n")
        assert found, f"{topic}.md has no section '{section}'"
        text = rest.partition("\n## ")[0]
    return [block.partition("\n```")[0] + "\n" for block in text.split(f"```{language}\n")[1:]]
