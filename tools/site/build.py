"""Puts the pages of the site together from the Markdown of the repository, and has mkdocs build it, strictly.

The pages are those that `graphwd help` shows. Where one names another as `graphwd help TOPIC`, the site has a link.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).absolute().parents[2]  # not resolved: Bazel links to each file
SITE = ROOT / "tools" / "site"
PAGES = ROOT / "graphwd" / "docs"
_TOPIC = re.compile(r"`graphwd\s+help\s+([a-z-]+)`")
_DOCS_LINK = re.compile(r"\]\(graphwd/docs/")


def build(target: Path) -> int:
    """Builds the site.

    Args:
        target: the directory to write, which is replaced.

    Returns:
        The exit status of mkdocs: 0 unless a page is missing or a link is broken.
    """
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        shutil.copytree(PAGES, work / "pages")
        shutil.copyfile(SITE / "api.md", work / "pages" / "api.md")
        for name, page in (("README", "index"), ("CONTRIBUTING", "contributing"), ("CHANGELOG", "changelog")):
            shutil.copyfile(ROOT / f"{name}.md", work / "pages" / f"{page}.md")
        (work / "pages" / "first-look.md").write_text(as_markdown(SITE / "first-look.ipynb"))
        topics = {page.stem for page in PAGES.glob("*.md")}
        for page in (work / "pages").glob("*.md"):
            page.write_text(with_links(page.read_text(), topics, page.stem))
        config = (SITE / "mkdocs.yml").read_text().replace("paths: [../..]", f"paths: [{ROOT}]")
        (work / "mkdocs.yml").write_text(config)
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(work / "mkdocs.yml")]
        quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        return subprocess.run([*command, "--site-dir", str(target)], env=quiet, check=False).returncode


def with_links(text: str, topics: set[str], own: str) -> str:
    """The text of a page, with links to the pages that it names.

    Args:
        text: Markdown.
        topics: the pages that there are.
        own: the page itself, which it does not link to.
    """

    def link(match: re.Match[str]) -> str:
        topic = match[1]
        return f"[{match[0]}]({topic}.md)" if topic in topics and topic != own else match[0]

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code blocks stay as they are
    parts[::2] = [_TOPIC.sub(link, _DOCS_LINK.sub("](", part)) for part in parts[::2]]
    return "".join(parts)


def as_markdown(notebook: Path) -> str:
    """A notebook as a page: its text, its code, and the text that the code printed."""
    pieces: list[str] = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            pieces.append(cell.source)
            continue
        pieces.append(f"```python\n{cell.source}\n```")
        pieces += [f"```text\n{output.text.rstrip()}\n```" for output in cell.outputs if output.output_type == "stream"]
    return "\n\n".join(pieces) + "\n"


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1])))
