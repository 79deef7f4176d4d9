"""Where a coupled decay joins the gradient, when an update is ready, and what is said where that is not certain."""

from __future__ import annotations

import pytest
import tensorflow as tf

from graphwd.analysis.gradient_entry import find_entry
from graphwd.analysis.learning_rate import find_learning_rate
from graphwd.analysis.readiness import find_readiness
from graphwd.errors import UnclearError
from tests.helpers.graphs import gradient_of, update_of, variable

M, V = variable("m", trainable=False), variable("v", trainable=False)
RATE = variable("learning_rate", 0.1, trainable=False)


def entry(update):
    """Where the gradient of an update ``update(w, gradient)`` enters."""
    w = variable()
    flow, target, writes = update_of(lambda: update(w, gradient_of(w)))
    return find_entry(flow, target, writes, find_learning_rate(flow, writes, exact=False))


def momentum(before):
    """Heavy ball after something was done to the gradient."""

    def update(w, g):
        M.assign(0.9 * M + before(g))
        w.assign_sub(RATE * M)

    return update


def global_norm(g):
    (clipped,), _ = tf.clip_by_global_norm([g], 0.3)
    return clipped


@pytest.mark.parametrize(
    ("before", "op"),
    [
        (lambda g: g, None),
        (lambda g: tf.negative(-g), None),
        (lambda g: g / 4.0, "RealDiv"),
        (lambda g: g * (1.0 / tf.cast(tf.size(g), tf.float32)), "Mul"),
        (lambda g: tf.clip_by_value(g, -0.1, 0.1), "Maximum"),
        (lambda g: tf.clip_by_norm(g, 0.3), "RealDiv"),
        (global_norm, "Mul"),
        (lambda g: tf.math.l2_normalize(g), "Mul"),
        (lambda g: g / tf.norm(g), "RealDiv"),
        (lambda g: g - tf.reduce_mean(g), "Sub"),
        (lambda g: g - 0.1 * tf.reduce_sum(g), "Sub"),
        (lambda g: tf.where(tf.math.is_finite(g), g, tf.zeros_like(g)), "SelectV2"),
        (lambda g: tf.add_n([g, tf.identity(g)]), "AddN"),
    ],
)
def test_clipping_unscaling_and_centring_come_before(before, op):
    found = entry(momentum(before))
    assert (found.after and found.after.rpartition("(")[2]) == (op and f"{op})")
    assert len(found.uses) == 1
    assert found.indices is None


@pytest.mark.parametrize(
    "update",
    [
        lambda w, g: w.assign_sub(RATE * g),
        lambda w, g: w.assign(w - RATE * g),
        lambda w, g: w.assign_add(-(0.5 * RATE) * g),
        lambda w, g: [M.assign(0.9 * M - RATE * g), w.assign_add(0.9 * M - RATE * g)],
        lambda w, g: [M.assign(0.9 * M + 0.1 * g), V.assign(0.9 * V + 0.1 * g * g), w.assign_sub(RATE * M / V)],
        lambda w, g: [w.assign_sub(RATE * tf.sign(0.9 * M + 0.1 * g)), M.assign(0.99 * M + 0.01 * g)],
    ],
    ids=["sgd", "assign", "warm-up", "nesterov", "adam", "lion"],
)
def test_it_comes_before_all_else(update):
    found = entry(update)
    assert found.after is None
    assert found.tensor.startswith("gradient_tape/")


def test_what_goes_into_a_slot_only_after_it_was_read_is_not_forgotten():
    def quasi_hyperbolic(w, g):
        old = M.read_value()
        w.assign_sub(RATE * (g + 0.7 * old))
        M.assign(0.9 * old + 0.1 * g)

    assert len(entry(quasi_hyperbolic).uses) == 2


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (momentum(lambda g: 0.5 * g), r"first of all multiplied by 'mul_2/x'"),
        (lambda w, g: w.assign_sub(RATE * tf.sign(g)), r"first of all put through 'Sign' \(Sign\)"),
        (momentum(tf.tanh), r"first of all put through 'Tanh' \(Tanh\)"),
        (
            lambda w, g: w.assign_sub(RATE * g * tf.minimum(1.0, 0.3 / tf.norm(g))),
            "scaled by 'Minimum', which is computed from it, only after the optimizer's arithmetic began",
        ),
        (momentum(lambda g: tf.linalg.matvec(tf.eye(2), g)), r"put through 'MatVec/MatMul' \(MatMul\)"),
        (
            lambda w, g: momentum(lambda g: g * tf.minimum(1.0, tf.norm(w) / tf.norm(g)))(w, g),
            "scaled by 'Minimum', which is computed from it and from the weight or a slot variable",
        ),
        (lambda w, g: w.assign_sub(RATE * g / tf.norm(g)), "scaled by 'norm/Squeeze', which is computed from it, only"),
    ],
    ids=[
        "coefficient",
        "sign",
        "tanh",
        "clipped too late",
        "preconditioned",
        "clipped by the weight",
        "normalized too late",
    ],
)
def test_what_may_be_either_is_refused(update, message):
    with pytest.raises(UnclearError, match=message):
        entry(update)


def test_without_a_learning_rate_a_gradient_must_be_as_it_was():
    def place(before):
        w = variable()
        flow, target, writes = update_of(
            lambda: [M.assign(0.9 * M + 0.1 * before(g := gradient_of(w))), V.assign(V + g * g), w.assign_sub(M / V)]
        )
        return find_entry(flow, target, writes, None)

    assert place(lambda g: g).after is None


def readiness(update):
    w = variable()
    flow, target, writes = update_of(lambda: update(w, gradient_of(w)))
    return find_readiness(
        flow, target, writes, [name for name in flow.nodes if name not in writes and "Assign" in name]
    )


def test_only_reads_by_the_update_are_made_anew():
    assert readiness(lambda w, g: w.assign_sub(0.1 * g)).rereads == ()
    ((_, uses),) = readiness(lambda w, g: w.assign(w - 0.1 * g)).rereads
    assert [(use.node, use.position) for use in uses] == [("sub", 0)]


def test_an_update_that_starts_from_an_older_weight_is_refused():
    def sharpness_aware(w, g):
        old = w.read_value()
        w.assign(tf.ones_like(w))
        w.assign(old - 0.1 * g)

    with pytest.raises(UnclearError, match=r"starts from what the weight was before 'AssignVariableOp' wrote it"):
        readiness(sharpness_aware)


def test_what_update_and_forward_pass_share_of_the_weight_is_refused():
    w = variable()

    def step():
        with tf.GradientTape() as tape:
            norm = tf.norm(w)
            loss = tf.reduce_sum(w * w) + norm
        w.assign_sub(0.1 * norm * tape.gradient(loss, w))

    flow, target, writes = update_of(step)
    with pytest.raises(
        UnclearError, match=r"its update uses 'norm/Sqrt', which the forward pass computes of the weight"
    ):
        find_readiness(flow, target, writes)


def test_a_forward_pass_in_a_function_is_no_part_of_the_update():
    w = variable()
    forward = tf.function(lambda: tf.reduce_sum(w * w))

    def step():
        with tf.GradientTape() as tape:
            loss = forward()
        w.assign(w - RATE * tape.gradient(loss, w))

    flow, target, writes = update_of(step)
    assert len(find_readiness(flow, target, writes).rereads) == 1
    assert find_entry(flow, target, writes, find_learning_rate(flow, writes)).after is None


def test_a_gradient_may_come_out_of_a_function_or_loop():
    w = variable()
    called = tf.function(lambda: gradient_of(w))

    def looped():
        total = tf.zeros([2])
        for _ in tf.range(3):
            total += gradient_of(w)
        return total

    for gradient in (called, looped):
        flow, target, writes = update_of(lambda gradient=gradient: w.assign(w - RATE * gradient()))
        assert len(find_readiness(flow, target, writes).rereads) == 1


def test_a_function_may_hold_clipping_but_no_more():
    clipped = tf.function(lambda g: tf.clip_by_value(g, tf.negative(1.0), 1.0))
    assert entry(momentum(lambda g: tf.cond(tf.norm(g) > 1.0, lambda: g / tf.norm(g), lambda: g))).after is not None
    for held in (tf.sign, lambda g: 0.5 * g):
        with pytest.raises(UnclearError, match=r"goes through the function that 'PartitionedCall' \(PartitionedCall\)"):
            entry(momentum(tf.function(held)))
    assert "PartitionedCall" in str(entry(momentum(clipped)).after)


def test_a_penalty_in_the_gradient_is_clipped_with_it():
    w, mask = variable(), tf.constant([1.0, 0.0])

    def entry_of(prepare):
        flow, target, writes = update_of(lambda: w.assign_sub(RATE * prepare(gradient_of(w) + 0.5 * w)))
        return find_entry(flow, target, writes, find_learning_rate(flow, writes, "learning_rate"))

    assert entry_of(lambda g: g).after == "add (AddV2)"
    assert "clip_by_norm" in entry_of(lambda g: tf.clip_by_norm(g, 1.0)).after
    with pytest.raises(UnclearError, match="first of all multiplied by"):
        entry_of(lambda g: g * mask)
    with pytest.raises(UnclearError, match="which is computed from it and from the weight"):
        entry_of(lambda g: g * tf.minimum(1.0, tf.norm(w) / tf.norm(g)))


def test_a_deep_forward_pass_is_not_walked():
    w = variable()

    def step():
        with tf.GradientTape() as tape:
            loss = w
            for _ in range(500):
                loss = tf.sin(loss)
            loss = tf.reduce_sum(loss)
        w.assign_sub(RATE * tf.minimum(loss, 1.0) * tape.gradient(loss, w))

    flow, target, writes = update_of(step)
    assert find_entry(flow, target, writes, find_learning_rate(flow, writes, exact=False)).after is None
