"""Holds the deps in every BUILD file below graphwd/ and tests/ against the import lines of the sources.

Bazel fails where a library is missing, but not where a dep is superfluous or comes by way of another one.
Usage: tools/check_build_deps.py, in any folder. Exit status 1 where something differs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WHOLE = "//graphwd"
"""All libraries of the package: what a test names that says `import graphwd`, or that starts the command."""


@dataclass(frozen=True)
class Target:
    """A library or a test of a BUILD file: its label, its sources and the labels it declares."""

    label: str
    sources: frozenset[Path]
    deps: frozenset[str]


def main() -> int:
    """Prints each difference.

    Returns:
        The exit status: 1 if there is a difference.
    """
    builds = sorted(build for top in ("graphwd", "tests") for build in (ROOT / top).rglob("BUILD"))
    targets = [target for build in builds for target in declared(build)]
    targets = [replace(t, deps=t.deps - {"//graphwd:package"}) for t in targets]
    libraries = {source: t.label for t in targets if not t.label.endswith("_test") for source in t.sources}
    differences: list[str] = []
    for target in targets:
        if not target.sources:  # a library of libraries
            continue
        needed = {libraries[path] for source in target.sources for path in imported(source) if path in libraries}
        if (target.label.startswith("//tests") and "//graphwd:package" in needed) or WHOLE in target.deps:
            needed = {label for label in needed if not label.startswith(WHOLE)} | {WHOLE}
        needed -= {target.label, "//graphwd:package"}
        differences += [f"{target.label}: add {label}" for label in sorted(needed - target.deps)]
        differences += [f"{target.label}: remove {label}" for label in sorted(target.deps - needed)]
    for difference in differences:
        print(difference, file=sys.stderr)
    return int(bool(differences))


def declared(build: Path) -> Iterator[Target]:
    """Yields the libraries and tests of a BUILD file."""
    package = "//" + build.parent.relative_to(ROOT).as_posix()
    for call in ast.walk(ast.parse(build.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        match ast.unparse(call.func):
            case "graphwd_library" | "py_library":
                name = ast.literal_eval(given["name"])
                sources = _globbed(given.get("srcs", ast.parse('glob(["*.py"])', mode="eval").body), build.parent)
                label = package if package.endswith("/" + name) else f"{package}:{name}"
                yield Target(label, frozenset(sources), _deps(given, package))
            case "graphwd_tests":
                assert isinstance(given["tests"], ast.Dict)
                for key, value in zip(given["tests"].keys, given["tests"].values, strict=True):
                    assert key is not None
                    assert isinstance(value, ast.Call)
                    name = ast.literal_eval(key)
                    options = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
                    source = ast.literal_eval(options["source"]) if "source" in options else f"{name}.py"
                    yield Target(f"{package}:{name}", frozenset({build.parent / source}), _deps(options, package))


def _deps(given: dict[str, ast.expr], package: str) -> frozenset[str]:
    labels = ast.literal_eval(given["deps"]) if "deps" in given else []
    return frozenset(package + label if label.startswith(":") else label for label in labels)


def _globbed(value: ast.expr, folder: Path) -> Iterator[Path]:
    """The files of a list of names, or of a call of `glob`."""
    if isinstance(value, ast.Call):
        excluded = {name for k in value.keywords if k.arg == "exclude" for name in ast.literal_eval(k.value)}
        for pattern in ast.literal_eval(value.args[0]):
            yield from (path for path in folder.glob(pattern) if path.name not in excluded)
    else:
        yield from (folder / name for name in ast.literal_eval(value))


def imported(source: Path) -> set[Path]:
    """Returns the modules of this repository that a source imports when it runs, in functions too."""
    names = set[str]()
    for node in _executed(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {module for module in modules if module.exists()} | {
        ROOT / name / "__init__.py" for name in names & {"graphwd"}
    }


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Walks `node`, but not what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _executed(child)


if __name__ == "__main__":
    sys.exit(main())
