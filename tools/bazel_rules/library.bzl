"""The packages as libraries."""

def graphwd_library(name, deps = [], data = []):
    """Declares the package graphwd/`name`: all modules of the folder.

    Args:
        name: the name of the target and of the folder.
        deps: the packages that it imports, and no others: tools/check_build_deps.py compares.
        data: files that the modules read.
    """
    native.py_library(
        name = name,
        srcs = native.glob(["*.py"]),
        data = data,
        visibility = ["//visibility:public"],
        deps = deps + ["//graphwd:package"],
    )
