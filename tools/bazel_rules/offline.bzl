"""Stand-ins for repositories that Bazel 4 downloads and a Python project never uses.

Bazel's own packages load C++ and Java rules to declare toolchains, and every test names the coverage
tools. Empty or forwarding repositories of the same names make a cold build work without a network.
"""

_CC_RULES = ["cc_binary", "cc_library", "cc_test", "cc_toolchain", "cc_toolchain_suite"]

_JAVA_RULES = ["java_import", "java_runtime", "java_toolchain"]

def _forward(rules):
    return "\n".join(["{0} = native.{0}".format(rule) for rule in rules]) + "\n"

def _filegroups(names):
    declaration = 'filegroup(name = "{}", visibility = ["//visibility:public"])\n'
    return "".join([declaration.format(name) for name in names])

def _stand_in_impl(repository_ctx):
    for path, content in repository_ctx.attr.files.items():
        repository_ctx.file(path, content, executable = False)

_stand_in = repository_rule(
    doc = "A repository that consists of the given files.",
    implementation = _stand_in_impl,
    attrs = {
        "files": attr.string_dict(
            doc = "The content of each file, by its path in the repository.",
            mandatory = True,
        ),
    },
)

def offline_repositories():
    """Declares the stand-ins; call it in WORKSPACE before anything else."""
    _stand_in(
        name = "rules_cc",
        files = {
            "cc/BUILD": "",
            "cc/defs.bzl": _forward(_CC_RULES),
        },
    )
    _stand_in(
        name = "rules_java",
        files = {
            "java/BUILD": "",
            "java/defs.bzl": _forward(_JAVA_RULES),
        },
    )
    _stand_in(
        name = "remote_coverage_tools",
        files = {
            "BUILD": _filegroups(["coverage_report_generator", "lcov_merger"]),
        },
    )
