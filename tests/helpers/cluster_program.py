"""What one process of a tf.distribute cluster runs: ``cluster_program.py JOB FOLDER [ARGUMENT]...``.

TF_CONFIG says which cluster and which task. A job writes what it saw to FOLDER, and checks nothing: that is for the
test. A process ends when its standard input does, so that none outlives the test.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import graphwd

RATE = 0.25
POLICY = {
    "version": 1,
    "rules": [{"regex": "kernel$", "weight_decay": RATE}, {"regex": "bias$", "weight_decay": 0}],
}
FEATURES = 5
CLASSES = 3
STEPS_OF_FIT = 6


def task() -> int:
    """The index of this process in its job."""
    return json.loads(os.environ["TF_CONFIG"])["task"]["index"]


def end_with_standard_input() -> None:
    """Ends this process when the one that started it closes the pipe or dies."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def batch_of(step: int, worker: int) -> tuple[tf.Tensor, tf.Tensor]:
    """A random batch, another one for each step and each worker."""
    random = np.random.default_rng([step, worker])
    return (
        tf.constant(random.normal(size=(6, FEATURES)), tf.float32),
        tf.constant(random.normal(size=(6, CLASSES)), tf.float32),
    )


def small_model(strategy: tf.distribute.Strategy) -> tuple[Any, Any, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]]:
    """A Keras model, its optimizer, and the training step of one replica."""
    import keras  # it asks TensorFlow for devices, which the strategy must set up first

    keras.utils.set_random_seed(3)
    with strategy.scope():
        layers = keras.layers
        model = keras.Sequential(
            [
                layers.Input((FEATURES,)),
                layers.Dense(4, activation="tanh", name="hidden"),
                layers.Dense(CLASSES, name="out"),
            ],
            name="net",
        )
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)

    def replica(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs) - targets))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))
        return loss

    return model, optimizer, replica


def in_lockstep(
    steps: int,
    variables: Mapping[str, tf.Variable],
    plain: Callable[[Any], Any],
    decayed: Callable[[Any], Any],
) -> dict[str, np.ndarray]:
    """Runs two steps from the same state, again and again, and goes on from what the second one made.

    Args:
        steps: how often.
        variables: the state, by name.
        plain: runs the undecayed step with a batch.
        decayed: runs the decayed step with a batch.

    Returns:
        The loss and every variable after each, as ``STEP/plain/NAME`` and ``STEP/decayed/NAME``.
    """
    seen: dict[str, np.ndarray] = {}
    for number in range(steps):
        batch = batch_of(number, task())
        before = {name: variable.numpy() for name, variable in variables.items()}
        for kind, run in (("plain", plain), ("decayed", decayed)):
            for name, variable in variables.items():
                variable.assign(before[name])
            seen[f"{number}/{kind}/loss"] = np.asarray(run(batch))
            seen |= {f"{number}/{kind}/{name}": variable.numpy() for name, variable in variables.items()}
    return seen


def ring_of_workers() -> tf.distribute.Strategy:
    """The strategy of workers that train together."""
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class MultiWorker:
    """A model under MultiWorkerMirroredStrategy and the undecayed step of a custom loop."""

    def __init__(self) -> None:
        strategy = ring_of_workers()
        self.model, self.optimizer, replica = small_model(strategy)
        self.step = tf.function(lambda *batch: strategy.run(replica, batch))
        every = [*self.model.trainable_variables, *self.optimizer.variables]
        # This worker's own copies.
        self.variables = {each.path: strategy.experimental_local_results(each.value)[0] for each in every}


def multi_worker_lockstep(folder: Path, steps: str) -> None:
    """In every step, runs the undecayed and the decayed step from the same state, and goes on with the latter."""
    worker = MultiWorker()
    decayed = graphwd.with_weight_decay(POLICY)(worker.step)
    seen = in_lockstep(
        int(steps),
        worker.variables,
        lambda batch: worker.step(*batch).numpy(),
        lambda batch: decayed(*batch).numpy(),
    )
    np.savez(folder / f"worker{task()}.npz", **seen)


def multi_worker_training(folder: Path, steps: str, every: str, hold_after: str) -> None:
    """Trains with a checkpoint every so many steps, from the last one that there is; may stop and wait to be killed."""
    worker = MultiWorker()
    decayed = graphwd.with_weight_decay(POLICY)(worker.step)
    done = tf.Variable(0, trainable=False, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=worker.model, optimizer=worker.optimizer, done=done)
    # All workers save, as tf.distribute demands, and all restore what the first one has saved.
    saved = [tf.train.CheckpointManager(checkpoint, folder / f"checkpoints{each}", 2) for each in (0, task())]
    if saved[0].latest_checkpoint:
        checkpoint.restore(saved[0].latest_checkpoint).assert_existing_objects_matched()
        print(f"restored step {done.numpy()}", flush=True)
    for step in range(int(done.numpy()), int(steps)):
        decayed(*batch_of(step, task()))
        done.assign_add(1)
        if done.numpy() % int(every) == 0:
            saved[1].save(checkpoint_number=int(done.numpy()))
        print(f"done step {done.numpy()}", flush=True)
        if str(done.numpy()) == hold_after:
            time.sleep(3600)
    np.savez(folder / f"worker{task()}.npz", **{name: variable.numpy() for name, variable in worker.variables.items()})


FIT_POLICIES: Mapping[str, Any] = {
    "constant": POLICY,
    "adamw": {
        "version": 1,
        "rules": [
            {"regex": "kernel$", "weight_decay": RATE, "semantics": "adamw"},
            {"regex": "bias$", "weight_decay": 0},
        ],
    },
}


def trained_by_fit(strategy: tf.distribute.Strategy, how: str, data: Any) -> dict[str, np.ndarray]:
    """Trains a model of tf_keras by ``fit``, from the same weights at every call, one step an epoch.

    Args:
        strategy: what distributes the training.
        how: ``attach POLICY`` or ``callback POLICY``, with a name in `FIT_POLICIES`; ``by hand``, which multiplies the
            kernels by 1 - RATE after each epoch; ``AdamW``, which is the optimizer of tf_keras; ``undecayed``.
        data: what ``fit`` is given; each epoch takes one batch of it.

    Returns:
        The weights and the variables of the optimizer after the training, by ``HOW/NAME``.
    """
    import tf_keras  # it asks TensorFlow for devices, which the strategy must set up first

    class ByHand(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            model: Any = self.model
            for weight in model.weights:
                if "kernel" in weight.name:
                    weight.assign(weight * (1 - RATE))

    tf_keras.utils.set_random_seed(3)
    layers = tf_keras.layers
    with strategy.scope():
        model = tf_keras.Sequential(
            [
                layers.Input((FEATURES,)),
                layers.Dense(4, activation="tanh", name="hidden"),
                layers.Dense(CLASSES, name="out"),
            ],
            name="net",
        )
        if how == "AdamW":
            optimizer = tf_keras.optimizers.AdamW(0.125, weight_decay=RATE)
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        else:
            optimizer = tf_keras.optimizers.Adam(0.125)
        model.compile(optimizer, "mse")
    random = np.random.default_rng(11)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape))
    way, _, policy = how.partition(" ")
    callbacks: list[Any] = [ByHand()] if how == "by hand" else []
    if way == "attach":
        graphwd.keras.attach(model, FIT_POLICIES[policy])
    if way == "callback":
        callbacks.append(graphwd.keras.WeightDecay(FIT_POLICIES[policy]))
    model.fit(data, epochs=STEPS_OF_FIT, steps_per_epoch=1, callbacks=callbacks, verbose=0)
    variables = [*model.weights, *optimizer.variables]
    return {f"{how}/{number} {variable.name}": variable.numpy() for number, variable in enumerate(variables)}


def dataset_of(worker: int, batches: int) -> tf.data.Dataset:
    """Batches of a worker, over and over again, which are not dealt out to others."""
    every = [batch_of(number, worker) for number in range(batches)]
    inputs, targets = (tf.stack(each) for each in zip(*every, strict=True))
    data = tf.data.Dataset.from_tensor_slices((inputs, targets))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return data.repeat().with_options(options)


def multi_worker_fit(folder: Path, *ways: str) -> None:
    """Trains by ``fit`` in each of these ways."""
    strategy, data = ring_of_workers(), dataset_of(task(), STEPS_OF_FIT)
    seen = collections.ChainMap(*(trained_by_fit(strategy, how, data) for how in ways))
    np.savez(folder / f"worker{task()}.npz", **seen)


def parameter_server_fit(folder: Path, *ways: str) -> None:
    """Trains by ``fit`` in each of these ways, each step on whichever worker: they all have the same data."""
    import tf_keras

    server = ParameterServer()
    data = tf_keras.utils.experimental.DatasetCreator(lambda _: dataset_of(0, 1))
    seen = collections.ChainMap(*(trained_by_fit(server.strategy, how, data) for how in ways))
    np.savez(folder / "coordinator.npz", **seen)


def serve(_: Path) -> None:
    """Is a worker or a parameter server."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server: Any = tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
    )
    print("serving", flush=True)
    server.join()


class ParameterServer:
    """The coordinator of two workers and a parameter server."""

    def __init__(self) -> None:
        self.strategy = tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
        self.coordinator = tf.distribute.coordinator.ClusterCoordinator(self.strategy)

    def run(self, step: Any, *args: Any) -> np.ndarray:
        """Runs a step on some worker and waits for it."""
        result = self.coordinator.schedule(step, args=args)
        self.coordinator.join()
        return result.fetch()


def parameter_server_lockstep(folder: Path, steps: str) -> None:
    """In every step, runs the undecayed and the decayed step from the same state, and goes on with the latter."""
    server = ParameterServer()
    model, optimizer, replica = small_model(server.strategy)
    step = tf.function(lambda *batch: server.strategy.run(replica, batch))
    decayed = graphwd.with_weight_decay(POLICY)(step)
    variables = {each.path: each.value for each in [*model.trainable_variables, *optimizer.variables]}
    seen = {f"device/{name}": np.array(variable.device) for name, variable in variables.items()}
    seen |= in_lockstep(
        int(steps),
        variables,
        lambda batch: server.run(step, *batch),
        lambda batch: server.run(decayed, *batch),
    )
    np.savez(folder / "coordinator.npz", **seen)


def parameter_server_asynchronous(folder: Path, steps: str, rate: str, size: str) -> None:
    """Schedules many decayed steps at once, two of which run at any time."""
    server = ParameterServer()
    with server.strategy.scope():
        kernel = tf.Variable(tf.ones([int(size)]), name="kernel")

    @tf.function
    def step(inputs: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(inputs * kernel)
        kernel.assign_sub(tape.gradient(loss, kernel))
        return loss

    decayed = graphwd.with_weight_decay({"version": 1, "rules": [{"weight_decay": float(rate)}]})(step)
    for _ in range(int(steps)):
        server.coordinator.schedule(decayed, args=(tf.constant(2.0**-12),))
    server.coordinator.join()
    np.savez(folder / "coordinator.npz", kernel=kernel.numpy())


def parameter_server_held(folder: Path, *groups: str) -> None:
    """Schedules steps that say how far they are and stop before and after their update, until they may go on.

    The letters of a group name the steps that are scheduled at once. A step writes the file ``started-NAME``, waits for
    ``before-NAME``, updates, writes ``updated-NAME`` and waits for ``after-NAME``.
    """
    server = ParameterServer()
    with server.strategy.scope():
        kernel = tf.Variable(tf.fill([FEATURES], 3.0), name="kernel")
        starts = tf.Variable(0, trainable=False)
        updates = tf.Variable(0, trainable=False)

    def wait_for(file: tf.Tensor) -> tf.Tensor:
        (turns,) = tf.while_loop(
            lambda turns: tf.size(tf.io.matching_files(file)) == 0, lambda turns: (turns + 1,), (tf.constant(0),)
        )
        return turns

    @tf.function
    def step(name: tf.Tensor) -> tf.Tensor:
        def file(stage: str) -> tf.Tensor:
            return tf.strings.join([str(folder), "/", stage, "-", name])

        with tf.control_dependencies([starts.assign_add(1)]):
            started = tf.io.write_file(file("started"), "")
        with tf.control_dependencies([started]):
            may_update = wait_for(file("before"))
        with tf.control_dependencies([may_update]):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(0.0 * kernel)
            writes = [kernel.assign_sub(tape.gradient(loss, kernel)), updates.assign_add(1)]
        with tf.control_dependencies(writes):
            updated = tf.io.write_file(file("updated"), "")
        with tf.control_dependencies([updated]):
            return wait_for(file("after"))

    decayed = graphwd.with_weight_decay(POLICY | {"rules": POLICY["rules"][:1]})(step)
    for group in groups:
        for name in group:
            server.coordinator.schedule(decayed, args=(tf.constant(name),))
        server.coordinator.join()
    np.savez(folder / "coordinator.npz", kernel=kernel.numpy(), starts=starts.numpy(), updates=updates.numpy())


JOBS = {
    job.__name__: job
    for job in (
        multi_worker_fit,
        multi_worker_lockstep,
        multi_worker_training,
        parameter_server_fit,
        parameter_server_lockstep,
        parameter_server_asynchronous,
        parameter_server_held,
        serve,
    )
}

if __name__ == "__main__":
    end_with_standard_input()
    JOBS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    if "ps" in json.loads(os.environ["TF_CONFIG"])["cluster"]:
        # Where a worker was restarted, a ClusterCoordinator never ends: it waits for the threads of the dead one.
        os._exit(0)
