"""Runs first-look.ipynb and writes what it prints into it; to be run after a change of what graphwd prints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbclient
import nbformat

NOTEBOOK = Path(__file__).parent / "first-look.ipynb"


def main() -> None:
    """Runs the notebook in an empty directory; keeps the text that it prints and nothing else."""
    book = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": scratch}}).execute()
    for cell in book.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if output.get("name") == "stdout"]
    nbformat.write(book, NOTEBOOK)


if __name__ == "__main__":
    main()
