"""The Python of this machine as a Bazel toolchain."""

# Prints the interpreter's own path (a pyenv shim is not the interpreter) and what is installed for it.
_DESCRIBE = """
import importlib.metadata
import sys

print(sys.executable)
print("python", sys.version)
for line in sorted({f"{d.name} {d.version}" for d in importlib.metadata.distributions()}):
    print(line)
"""

_BUILD = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(
    name = "runtime",
    interpreter_path = "{interpreter}",
    python_version = "PY3",
    # Bazel 4's launcher asks for `python`, which Debian does not have.
    stub_shebang = "#!/usr/bin/env python3",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)

exports_files(["installed.txt"])
"""

def _find_python(repository_ctx):
    """Returns the path of the Python to ask: GRAPHWD_PYTHON, else the tree's .venv, else python3."""
    chosen = repository_ctx.os.environ.get("GRAPHWD_PYTHON")
    if chosen:
        return chosen
    root = repository_ctx.path(Label("//:BUILD")).dirname
    venv = root.get_child(".venv").get_child("bin").get_child("python")
    if venv.exists:
        return venv
    return repository_ctx.which("python3") or fail("no python3 on the PATH; run tools/setup, or set GRAPHWD_PYTHON")

def _local_python_impl(repository_ctx):
    python = _find_python(repository_ctx)
    described = repository_ctx.execute([python, "-c", _DESCRIBE])
    if described.return_code:
        fail("{} does not run; run tools/setup, or set GRAPHWD_PYTHON:\n{}".format(python, described.stderr))
    interpreter, _, installed = described.stdout.partition("\n")
    repository_ctx.file("BUILD", _BUILD.format(interpreter = interpreter), executable = False)
    repository_ctx.file("installed.txt", installed, executable = False)

local_python = repository_rule(
    doc = """Finds this machine's Python and declares it as `:toolchain`.

The interpreter is the environment variable GRAPHWD_PYTHON, else `.venv/bin/python` of this tree, else
`python3` on the PATH. `:installed.txt` lists the packages installed for it: what names that file as
data runs again when they change. They are looked at when the Bazel server starts; tools/test shuts it down.
""",
    implementation = _local_python_impl,
    environ = ["GRAPHWD_PYTHON", "PATH"],
    local = True,
)
