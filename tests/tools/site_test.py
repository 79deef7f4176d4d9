"""The site of the documentation builds without a broken link, and its notebook runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbclient
import nbformat
import pytest

import graphwd

SITE = Path("tools/site")


def build(target, source):
    command = [sys.executable, str(source / "tools/site/build.py"), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    done = build(target, Path.cwd())
    assert done.returncode == 0, done.stderr
    return target


class Page(HTMLParser):
    """What a page refers to."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.resources = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        if tag in ("script", "img", "link", "iframe") and given.get("rel") != "canonical":
            self.resources |= {given.get("src"), given.get("href")} - {None}


def test_every_public_name_is_in_the_reference(site):
    page = Page(site / "api/index.html")
    described = {name.rpartition(".")[2] for name in page.ids if name and name.startswith("graphwd.")}
    assert set(graphwd.__all__) | {"attach", "detach", "WeightDecay"} <= described


def test_pages_that_name_each_other_link_to_each_other(site):
    assert {"../policy/", "../recipes/", "../training/"} <= Page(site / "first-look/index.html").links
    assert "../recipes/" in Page(site / "faq/index.html").links


def test_nothing_comes_from_elsewhere(site):
    pages = [Page(path) for path in site.rglob("*.html")]
    assert len(pages) > 15
    assert not {one for page in pages for one in page.resources if one.startswith(("http", "//"))}


def test_a_broken_link_is_an_error(tmp_path):
    for folder in ("graphwd/docs", "tools/site"):
        (tmp_path / folder).mkdir(parents=True)
        for file in Path(folder).glob("*.*"):
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_bytes(Path(name).read_bytes())
    os.symlink(Path("graphwd/steps").absolute(), tmp_path / "graphwd/steps")
    with (tmp_path / "graphwd/docs/plan.md").open("a") as page:
        page.write("\n[gone](nowhere.md)\n")
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def without_numbers(text):
    return re.sub(r"\s+|─", " ", re.sub(r"\d[\d.e+-]*", "#", text)).split()


@pytest.mark.filterwarnings("ignore")  # of Jupyter
def test_the_notebook_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    book = nbformat.read(SITE / "first-look.ipynb", as_version=4)
    shown = [without_numbers("".join(o.text for o in cell.outputs)) for cell in book.cells if cell.cell_type == "code"]
    client = nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = [
        without_numbers("".join(o.text for o in cell.outputs if o.get("name") == "stdout"))
        for cell in book.cells
        if cell.cell_type == "code"
    ]
    assert printed == shown
    assert sum(map(bool, shown)) >= 4
