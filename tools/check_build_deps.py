"""Holds the deps in graphwd/BUILD against the import lines of each module.

Bazel fails where a module is missing, but not where a dep is superfluous or comes by way of another one.
Usage: tools/check_build_deps.py, in any folder. Exit status 1 where something differs.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "graphwd"


def main() -> int:
    """Prints each difference.

    Returns:
        The exit status: 1 if there is a difference.
    """
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    declared = declared_deps((PACKAGE / "BUILD").read_text(encoding="utf-8"))
    needed = {
        module: imported_modules((PACKAGE / f"{module}.py").read_text(encoding="utf-8"), modules) for module in modules
    }
    needed |= {"graphwd": {*modules, "package"}, "package": set()}
    differences = [f"no library {name}" for name in sorted(needed.keys() - declared.keys())]
    differences += [f"no module for the library {name}" for name in sorted(declared.keys() - needed.keys())]
    for name in sorted(needed.keys() & declared.keys()):
        differences += [f"{name}: add :{dep}" for dep in sorted(needed[name] - declared[name])]
        differences += [f"{name}: remove :{dep}" for dep in sorted(declared[name] - needed[name])]
    for difference in differences:
        print(f"graphwd/BUILD: {difference}", file=sys.stderr)
    return int(bool(differences))


def declared_deps(build: str) -> dict[str, set[str]]:
    """Returns the deps of each library, by name; `build` is the text of a BUILD file."""
    deps = {}
    for call in ast.walk(ast.parse(build)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in {"graphwd_library", "py_library"}:
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            labels = ast.literal_eval(given["deps"]) if "deps" in given else []
            deps[ast.literal_eval(given["name"])] = {label.removeprefix(":") for label in labels}
    return deps


def imported_modules(source: str, modules: set[str]) -> set[str]:
    """Returns those of `modules` that `source` imports when it runs, in functions too."""
    imported = set()
    for node in _executed(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {module for module in modules if f"graphwd.{module}" in imported}


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Walks `node`, but not what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _executed(child)


if __name__ == "__main__":
    sys.exit(main())
