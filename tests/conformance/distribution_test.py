"""Several processes, on TensorFlow's own engine: workers that train together, and a parameter server with workers.

Every process is real and so is its end by SIGKILL. What a process saw it wrote to a file; it is judged here.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.clusters import cluster, with_free_ports
from tests.helpers.lockstep import assert_bit_equal, assert_within_ulps

RATE = 0.25
KERNELS = ("net/hidden/kernel", "net/out/kernel")
STEPS = 5
FACTOR = np.float32(1 - RATE)
WORKERS = ("worker0", "worker1")


def values(folder, task):
    with np.load(folder / f"{task}.npz") as saved:
        return dict(saved)


def check_decays_once(seen):
    """In each step, from the same state: kernels once decayed, all else as the undecayed step leaves it."""
    names = {key.partition("/decayed/")[2] for key in seen if "/decayed/" in key}
    assert names > {*KERNELS, "loss", "net/out/bias", "adam/iteration", "adam/net_out_kernel_velocity"}
    for step in range(STEPS):
        for name in names:
            plain, decayed = seen[f"{step}/plain/{name}"], seen[f"{step}/decayed/{name}"]
            if name in KERNELS:
                assert_within_ulps(decayed, plain.astype(np.float64) * (1 - RATE), 1, f"{step} {name}")
            else:
                assert_bit_equal(plain, decayed, f"{step} {name}")


def test_workers_decay_once_and_stay_equal(tmp_path):
    def test(folder):
        with cluster({"worker": [["multi_worker_lockstep", str(folder), str(STEPS)]] * 2}, folder) as workers:
            workers.wait_for_end(*WORKERS)
        first, second = (values(folder, name) for name in WORKERS)
        assert first.keys() == second.keys()
        for key in first:
            if key.endswith("loss"):
                assert first[key] != second[key]  # each has its own data
            else:
                assert_bit_equal(first[key], second[key], key)
        check_decays_once(first)

    with_free_ports(test, tmp_path)


def train(folder, hold_after):
    """The arguments of a worker that makes 8 steps, with a checkpoint after every second."""
    return ["multi_worker_training", str(folder), "8", "2", hold_after]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights and slot variables of both workers after an undisturbed training."""
    found = []

    def test(folder):
        with cluster({"worker": [train(folder, "never")] * 2}, folder) as workers:
            workers.wait_for_end(*WORKERS)
        found[:] = [values(folder, name) for name in WORKERS]

    with_free_ports(test, tmp_path_factory.mktemp("uninterrupted"))
    return found


@pytest.mark.parametrize("killed", [("worker1",), WORKERS], ids=["one", "both"])
def test_killed_workers_go_on_from_the_checkpoint(tmp_path, uninterrupted, killed):
    def test(folder):
        held = [train(folder, "5" if name in killed else "never") for name in WORKERS]
        with cluster({"worker": held}, folder) as workers:
            workers.wait_for_output("done step 5", *WORKERS)
            for name in killed:
                workers[name].kill()
            if killed != WORKERS:
                assert "UnavailableError" in workers.wait_for_failure("worker0")
        # Both anew, as a cluster manager does: a worker cannot join a collective that others are in.
        with cluster({"worker": [train(folder, "never")] * 2}, folder) as workers:
            workers.wait_for_end(*WORKERS)
            for name in WORKERS:
                assert "restored step 4" in workers[name].output()
                assert "done step 5" in workers[name].output()
        for name, expected in zip(WORKERS, uninterrupted, strict=True):
            actual = values(folder, name)
            assert actual.keys() == expected.keys()
            for key in expected:
                assert_bit_equal(actual[key], expected[key], key)

    with_free_ports(test, tmp_path)


WAYS = ("undecayed", "by hand", "attach constant", "callback constant", "AdamW", "attach adamw", "callback adamw")


def check_fit(seen):
    """``fit`` decays as its user would by hand, to the bit; with ``adamw``, as AdamW of tf_keras.

    In float32 these two round differently: 6 steps, each within 2 units of the largest of its kind.
    """
    by_way = {way: [value for key, value in seen.items() if key.startswith(f"{way}/")] for way in WAYS}
    plain, by_hand, adamw = by_way["undecayed"], by_way["by hand"], by_way["AdamW"]
    assert len(plain) == 4 + 1 + 2 * 4  # weights, the iteration, two moments of each
    assert np.abs(plain[0] - by_hand[0]).max() > 0.1 < np.abs(plain[0] - adamw[0]).max()
    for way in ("attach constant", "callback constant"):
        for expected, actual in zip(by_hand, by_way[way], strict=True):
            assert_bit_equal(actual, expected, way)
    for way in ("attach adamw", "callback adamw"):
        for expected, actual in zip(adamw, by_way[way], strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=12 * 2.0**-23 * max(1, np.abs(expected).max()))


def test_workers_that_fit(tmp_path):
    """Of tf_keras: Keras 3 cannot fit under this strategy, decayed or not."""

    def test(folder):
        with cluster({"worker": [["multi_worker_fit", str(folder), *WAYS]] * 2}, folder) as workers:
            workers.wait_for_end(*WORKERS)
        first, second = (values(folder, name) for name in WORKERS)
        assert first.keys() == second.keys()
        for key in first:
            assert_bit_equal(first[key], second[key], key)
        check_fit(first)

    with_free_ports(test, tmp_path)


def parameter_server(folder, *coordinator):
    """Two workers, a parameter server and a coordinator."""
    serve = ["serve", str(folder)]
    job, *arguments = coordinator
    return cluster({"worker": [serve] * 2, "ps": [serve], "chief": [[job, str(folder), *arguments]]}, folder)


def test_scheduled_steps_decay_once(tmp_path):
    def test(folder):
        with parameter_server(folder, "parameter_server_lockstep", str(STEPS)) as tasks:
            tasks.wait_for_end("chief0")
        seen = values(folder, "coordinator")
        devices = {str(value) for key, value in seen.items() if key.startswith("device/")}
        assert devices == {"/job:ps/replica:0/task:0/device:CPU:0"}
        check_decays_once(seen)

    with_free_ports(test, tmp_path)


def test_fit_on_a_parameter_server(tmp_path):
    """Of tf_keras: Keras 3 knows no coordinator."""

    def test(folder):
        with parameter_server(folder, "parameter_server_fit", *WAYS) as tasks:
            tasks.wait_for_end("chief0")
        check_fit(values(folder, "coordinator"))

    with_free_ports(test, tmp_path)


def test_steps_scheduled_at_once_decay_once_each(tmp_path):
    """At once and in any order: every step takes 2**-12 for its gradient and 2**-23 for its decay, exactly.

    The latter is what 1e-7 * w rounds to where it is subtracted from a float32 between 0.9 and 1.
    """
    steps = 200

    def test(folder):
        with parameter_server(folder, "parameter_server_asynchronous", str(steps), "1e-7", "1000") as tasks:
            tasks.wait_for_end("chief0")
        expected = np.full(1000, 1 - steps * (2.0**-12 + 2.0**-23), np.float32)
        assert_bit_equal(values(folder, "coordinator")["kernel"], expected)

    with_free_ports(test, tmp_path)


def test_no_update_of_another_worker_is_lost(tmp_path):
    """A rate that would be one multiplication elsewhere: what comes between its read and its write has to stay.

    How old the weight is that a decay is computed from depends on the run, and changes it by less than 1e-8.
    """
    steps, rate = 200, 2.0**-20

    def test(folder):
        with parameter_server(folder, "parameter_server_asynchronous", str(steps), str(rate), "1000000") as tasks:
            tasks.wait_for_end("chief0")
        kernel = 1.0
        for _ in range(steps):
            kernel = (kernel - 2.0**-12) * (1 - rate)
        # Each subtraction rounds: half a unit, 2 ** -25. A lost update is 2 ** -12.
        np.testing.assert_allclose(values(folder, "coordinator")["kernel"], kernel, rtol=0, atol=2 * steps * 2.0**-25)

    with_free_ports(test, tmp_path)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_step_of_a_killed_worker_decays_as_often_as_it_updates(tmp_path, moment):
    """A coordinator runs the step of a worker that died again, whatever that has done to the variables already.

    So four steps make four updates where the worker dies before its update, and five where it dies after it: TensorFlow
    promises at least one. The kernel has decayed as often as it was updated, in both. Steps `a` and `b` are on the two
    workers when one is killed, `c` and `d` when it is back. Two updates never come at once: see above.
    """

    def test(folder):
        def allow(stage, name):
            (folder / f"{stage}-{name}").touch()

        def update_one_by_one(names):
            for name in names:
                allow("before", name)
                tasks.wait_for_files(folder / f"updated-{name}")

        def restart_a_worker():
            tasks["worker1"].kill()
            tasks["worker1"].start()

        with parameter_server(folder, "parameter_server_held", "ab", "cd") as tasks:
            tasks.wait_for_files(folder / "started-a", folder / "started-b")
            if moment == "before":
                restart_a_worker()
            update_one_by_one("ab")
            if moment == "after":
                restart_a_worker()
            allow("after", "a")
            allow("after", "b")
            tasks.wait_for_files(folder / "started-c", folder / "started-d")
            update_one_by_one("cd")
            allow("after", "c")
            allow("after", "d")
            tasks.wait_for_end("chief0")
        seen = values(folder, "coordinator")
        assert seen["starts"] == 5
        assert seen["updates"] == (4 if moment == "before" else 5)
        kernel = np.full(5, 3.0, np.float32)
        for _ in range(seen["updates"]):
            kernel *= FACTOR
        assert_bit_equal(seen["kernel"], kernel)

    with_free_ports(test, tmp_path)
