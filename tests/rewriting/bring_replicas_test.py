"""A variable of graphwd's own on two replicas: each copy of the weight gets the factor of its own replica."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tensorflow as tf
import tf_keras

from graphwd.analysis.updates import find_updates
from graphwd.planning.injections import Elsewhere, Factor, Rate
from graphwd.planning.planner import make_plan
from graphwd.policy.rules import Policy
from graphwd.rewriting.inject import inject
from graphwd.steps.emit import Emitted
from graphwd.steps.read import read
from tests.helpers.devices import split_cpu

STEP, RATE = 0.1, 0.1


def test_on_replicas():
    split_cpu()
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        w = tf.Variable([1.0, -2.0], name="w")
        own = tf.Variable(0.5, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        optimizer = tf_keras.optimizers.SGD(STEP)
        optimizer.build([w])

    def replica():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(w)) / 4
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])  # adds up the gradients of both replicas

    concrete = tf.function(lambda: strategy.run(replica)).get_concrete_function()
    graph = read(concrete)
    plan = make_plan(find_updates(graph), Policy.from_dict({"version": 1, "rules": [{"weight_decay": RATE}]}))
    plan.check()
    captured = {Elsewhere(each.device, "resource"): each for each in strategy.experimental_local_results(own)}
    injections = []
    for injection in plan.injections:
        (place,) = (place for place in captured if place.name == injection.variable.device)
        injections.append(replace(injection, rate=Rate(RATE, None, (Factor("own", "float32", place),))))
    assert len({injection.variable.device for injection in injections}) == 2
    rewritten = Emitted(concrete, lambda name: inject(graph, injections, name), captured.__getitem__).concrete(concrete)
    expected = np.float64([1.0, -2.0])
    for factor in (0.5, 0.25):
        own.assign(factor)
        rewritten()
        expected = (1 - RATE * factor) * (expected - STEP * expected)
        for copy in strategy.experimental_local_results(w):
            np.testing.assert_allclose(copy, expected, rtol=5e-7)
