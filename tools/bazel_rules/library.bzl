"""The modules of the package as libraries."""

def graphwd_library(name, deps = [], data = []):
    """Declares the module graphwd/`name`.py.

    Args:
        name: the name of the target and of the module.
        deps: the modules that it imports, and no others: tools/check_build_deps.py compares.
        data: files that the module reads.
    """
    native.py_library(
        name = name,
        srcs = [name + ".py"],
        data = data,
        visibility = ["//visibility:public"],
        deps = deps + [":package"],
    )
