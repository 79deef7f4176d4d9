"""The packages lie in the order of the data."""

import ast
from pathlib import Path

import graphwd

ROOT = Path(graphwd.__file__).parent
ORDER = [
    "base",
    "decay",
    "policy",
    "graph",
    "analysis",
    "planning",
    "rewriting",
    "steps",
    "models",
    "checking",
    "keras",
    "cli",
]
BASE = {"errors", "garbage", "messages", "progress", "__version__"}


def package(name):
    return "base" if name in BASE else name


def test_each_package_imports_only_those_before_it():
    seen = set()
    for source in ROOT.rglob("*.py"):
        own = package(source.relative_to(ROOT).with_suffix("").parts[0])
        if own.startswith("__"):
            continue
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("graphwd."):
                parts = f"{node.module}.{node.names[0].name}".split(".")
                assert ORDER.index(package(parts[1])) <= ORDER.index(own), f"{source} imports {node.module}"
                seen.add(own)
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("graphwd.") for alias in node.names), source
    assert seen >= set(ORDER) - {"base"}
