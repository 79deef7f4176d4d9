"""Runs the tests on several versions of TensorFlow, by Bazel, and prints for each what passed, failed and was skipped.

Usage: tools/test_versions [--keep FOLDER] [VERSION]... [-- BAZEL OPTION OR TARGET...], for example

    tools/test_versions                                          # all tests on every version, about an hour each
    tools/test_versions 2.16 2.20 -- //tests/rewriting:inject_test --test_filter=adam
    tools/test_versions nightly                                  # tf-nightly, Keras and tf_keras of that day

Each version gets a virtual environment of its own: TensorFlow (some 650 MB), the tf_keras of the same version, and the
newest of what else pip lets stand beside it. It is removed afterwards, unless --keep names a folder for all of them,
where it is also looked for. Needs python3 of at least 3.11 and what TensorFlow has a wheel for, PyPI, and the programs
that tools/test installs. Exit status 1 if a test failed, or a version could not be installed.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

from count_tests import reports

ROOT = Path(__file__).resolve().parent.parent

# From the oldest that pyproject.toml allows to the newest that there is.
VERSIONS = ("2.16", "2.17", "2.18", "2.19", "2.20", "2.21")

PINNED = ("tensorflow", "tf_keras", "tensorflow-text")
"""What is of the version that is asked for."""

NIGHTLY = "nightly"

OF_NIGHTLY = ("tf-nightly", "tf_keras-nightly", "tb-nightly")

NOT_NIGHTLY = ("keras-hub", "tensorboard", "tensorflow-recommenders")
"""What asks for a released TensorFlow or Keras, or is part of one."""

BESIDE = ("setuptools<81",)
"""TensorBoard before 2.21 takes pkg_resources from it."""

WITH_LIBRARIES = ("2.20", "2.21")
"""The versions that the libraries of tools/libraries.txt go with."""

OF_LIBRARIES = "//tests/conformance:libraries_test"
OF_KERAS_HUB = tuple(f"//tests/conformance:{name}_test" for name in ("keras_hub", "model_roles", "recipes"))

LINTERS = ("pyright", "ruff")


def main(arguments: list[str]) -> int:
    """Tests every version asked for.

    Args:
        arguments: of the command line.

    Returns:
        The exit status.
    """
    ours, bazel_arguments = _split(arguments)
    parser = argparse.ArgumentParser(prog="tools/test_versions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", default=list(VERSIONS), help="such as 2.16")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the environments are kept")
    options = parser.parse_args(ours)
    good = [test(version, options.keep, bazel_arguments) for version in options.versions]
    return 0 if all(good) else 1


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What stands before ``--``, and what after it."""
    where = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:where], arguments[where + 1 :]


def test(version: str, keep: Path | None, bazel_arguments: list[str]) -> bool:
    """Tests one version and prints what came of it.

    Args:
        version: the minor version, such as 2.16.
        keep: the folder where its environment stays; None to remove it.
        bazel_arguments: options and targets of ``bazel test``; without a target, all.

    Returns:
        Whether all went well.
    """
    with tempfile.TemporaryDirectory(prefix="graphwd_versions_") as scratch:
        environment = (keep or Path(scratch)).absolute() / version
        python = environment / "bin" / "python"
        if (reason := install(environment, version)) is not None:
            print(f"{version}: not installed: {reason}", flush=True)
            return False
        events = Path(scratch) / "events"
        left_out: list[str] = []
        if all(each.startswith("-") for each in bazel_arguments):
            left_out = [] if version in WITH_LIBRARIES else [OF_LIBRARIES]
            left_out += OF_KERAS_HUB if version == NIGHTLY else ()
            bazel_arguments = [*bazel_arguments, "--", "//...", *(f"-{target}" for target in left_out)]
        status = subprocess.run(
            ["bazel", "test", f"--build_event_json_file={events}", *bazel_arguments],
            cwd=ROOT,
            env=os.environ | {"GRAPHWD_PYTHON": str(python)},
            stdout=sys.stderr,
            check=False,
        ).returncode
        subprocess.run(["bazel", "shutdown"], cwd=ROOT, check=False)  # what is installed is looked at when it starts
        lines = events.read_text(encoding="utf-8").splitlines() if events.exists() else []
        print("\n    ".join([installed(python), *summary(reports(lines)), *not_passed(lines)]), flush=True)
        if left_out:
            print(f"    not run: {', '.join(left_out)}, whose libraries need another version", flush=True)
        if status:
            print(f"    bazel ended with exit status {status}", flush=True)
        return status == 0


def install(environment: Path, version: str) -> str | None:
    """Makes the environment of a version, unless it is there.

    Args:
        environment: its folder.
        version: the minor version of TensorFlow.

    Returns:
        Why that failed; None where it did not.
    """
    stamp = environment / "installed"
    packages = packages_of(version)
    if stamp.exists() and stamp.read_text() == "\n".join(packages):
        return None
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    command = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    libraries = ["--no-deps", "--requirement", str(ROOT / "tools" / "libraries.txt")]
    for what in (packages, *([libraries] if version in WITH_LIBRARIES else [])):
        done = subprocess.run([*command, *what], capture_output=True, text=True, check=False)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    stamp.write_text("\n".join(packages))
    return None


def packages_of(version: str) -> list[str]:
    """What is installed for a version, with its dependencies."""
    if version == NIGHTLY:
        return [*OF_NIGHTLY, *BESIDE, *(each for each in others() if _name(each) not in NOT_NIGHTLY)]
    return [*(f"{name}=={version}.*" for name in PINNED), *BESIDE, *others()]


def others() -> list[str]:
    """What the package and its tests need besides, but for what checks the source."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [package for package in packages if _name(package) not in (*PINNED, *LINTERS)]


def _name(package: str) -> str:
    """The name of a package, without bounds."""
    return re.split(r"[^\w-]", package)[0]


def installed(python: Path) -> str:
    """The exact versions in an environment."""
    program = (
        "import importlib.metadata as m, platform\n"
        "versions = {each.name.lower().replace('-', '_'): each.version for each in m.distributions()}\n"
        "names = 'tensorflow tf_nightly keras keras_nightly tf_keras tf_keras_nightly keras_hub numpy'.split()\n"
        "print(*(f'{name} {versions[name]}' for name in names if name in versions), sep=', ', end=', ')\n"
        "print(f'python {platform.python_version()}')"
    )
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def summary(results: Iterable[Path]) -> Iterator[str]:
    """What the tests came to: counts, then what failed, by file, and why tests were skipped.

    Args:
        results: JUnit reports.

    Yields:
        Lines.
    """
    cases = [case for report in results for case in ElementTree.parse(report).iter("testcase")]
    failed: dict[str, list[str]] = collections.defaultdict(list)
    reasons: collections.Counter[str] = collections.Counter()
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed[case.get("classname", "")].append(case.get("name", ""))
        elif (skipped := case.find("skipped")) is not None:
            reasons[skipped.get("message", "")] += 1
    failures, skips = sum(map(len, failed.values())), reasons.total()
    yield f"{len(cases) - failures - skips} passed, {failures} failed, {skips} skipped"
    yield from (f"failed in {file}: {', '.join(names)}" for file, names in failed.items())
    yield from (f"skipped {count}: {reason}" for reason, count in reasons.most_common())


def not_passed(events: Iterable[str]) -> Iterator[str]:
    """The targets that did not pass: those of failed cases, and those whose process crashed or was ended.

    Args:
        events: the lines that --build_event_json_file wrote.

    Yields:
        Lines.
    """
    for event in map(json.loads, events):
        if (summary := event.get("testSummary")) is not None and summary["overallStatus"] != "PASSED":
            yield f"{event['id']['testSummary']['label']}: {summary['overallStatus']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
