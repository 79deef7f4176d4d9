"""Tests that pytest runs."""

_RUNNER = "//tools:pytest_main.py"

# A time limit is for hangs. By Bazel's own a test of 50 s is "small" and ends at 60 s; here one ends at no less than ten
# times what any of its size takes alone, so that the tests pass on a machine with other work.
_TIMEOUTS = {
    "small": "long",  # 900 s
    "medium": "eternal",  # 3600 s
    "large": "eternal",
    "enormous": "eternal",
}

def graphwd_test(name, source = None, deps = [], data = [], size = "small", tags = [], shard_count = None, env = {}):
    """Declares the test `name`.

    Args:
        name: the name of the target.
        source: the file that holds the tests; by default `name`.py.
        deps: the libraries that the source imports, and no others.
        data: files that the test reads.
        size: Bazel's test size: what the test needs of the machine. It also decides the time limit.
        tags: Bazel's tags; `nightly` leaves the test out unless --config=nightly is given.
        shard_count: how many shards the tests in the source are dealt out to.
        env: environment variables of the tests.
    """
    source = source or name + ".py"
    native.py_test(
        name = name,
        size = size,
        timeout = _TIMEOUTS[size],
        srcs = [source, _RUNNER],
        args = ["$(rootpath {})".format(source)],
        data = data + [
            "//:pyproject.toml",
            "@local_python//:installed.txt",
        ],
        env = dict(
            env,
            CUDA_VISIBLE_DEVICES = "-1",
            TF_CPP_MIN_LOG_LEVEL = "3",
        ),
        legacy_create_init = False,
        main = _RUNNER,
        shard_count = shard_count,
        tags = tags,
        # Without the package itself, `graphwd` would be the editable install's, with all its modules.
        deps = deps + ["//graphwd:package"],
    )

def graphwd_tests(tests):
    """Declares a `graphwd_test` for each `*_test.py` of the package.

    Args:
        tests: the arguments of `graphwd_test` other than `name`, by name. A test file without an entry
            is an error, so that none is left out.
    """
    sources = native.glob(["*_test.py"], allow_empty = True)
    left_out = [source for source in sources if source[:-len(".py")] not in tests]
    if left_out:
        fail("no entry in graphwd_tests for {}".format(", ".join(left_out)))
    for name, arguments in tests.items():
        graphwd_test(name = name, **arguments)
