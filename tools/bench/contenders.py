"""The ways to decay a weight that are compared, each as a training step of its own with variables of its own.

All steps train by the same optimizer; what differs is what is done about decay. ``floor`` is what every decay must do:
after the undecayed step, each decayed variable is read once and written once, in the order of the step, and nothing
else: ``ReadVariableOp``, ``Mul`` by a constant, ``AssignVariableOp``, so that N numbers are read and N are written to a
new buffer, which becomes the variable's. (``Neg`` or ``DeepCopy`` in place of the ``Mul`` take as long. No op scales a
variable where it is: ``ResourceApplyGradientDescent`` and ``AssignSubVariableOp`` want another tensor of its size.)
For a table of which a step touches some rows it is ``ResourceGather`` and ``ResourceScatterUpdate`` of those rows.
Under XLA the same is asked for, and XLA makes of it what it can: where it fuses it with the update, the floor costs
nothing.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras
from workloads import Built, Workload, build, tensor_of

import graphwd
from graphwd.errors import PolicyError

import keras  # isort: skip - after TensorFlow, whose remarks it would set free

LEARNING_RATE = 1e-3
RATE = 1e-4
"""What a decay takes off a weight at each step, and the factor of the L2 terms."""
WEIGHT_DECAY = 4e-3
"""The same where it is multiplied by the learning rate; Keras's default."""

UNDECAYED, FLOOR = "undecayed", "floor"
OWN = "the optimizer's own"
ADDONS = "TensorFlow Addons"
AT_ONCE = "all in one product"

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "keras.Adam": keras.optimizers.Adam,
    "keras.SGD": keras.optimizers.SGD,
    "legacy.Adam": tf_keras.optimizers.legacy.Adam,  # ResourceApplyAdam
    "legacy.SGD": tf_keras.optimizers.legacy.SGD,  # ResourceApplyGradientDescent, ResourceScatterAdd
    "legacy.Adagrad": tf_keras.optimizers.legacy.Adagrad,  # ResourceSparseApplyAdagradV2
}
DENSE = ["keras.Adam", "keras.SGD", "legacy.Adam", "legacy.SGD"]
SPARSE = ["keras.SGD", "legacy.SGD", "legacy.Adagrad"]
SPARSE_NOTE = (
    "Of these optimizers, keras.SGD without momentum, legacy.SGD and legacy.Adagrad write only the rows that a step "
    "touches. keras.Adam and legacy.Adam go through the whole table and its slot variables whatever is touched, so "
    "that a decay of some rows is not to be seen beside them; one row of each is measured."
)
"""Checked by tests/tools/bench_test.py in the traced steps' ops."""


class CannotRunError(Exception):
    """A combination that cannot run; the message says why."""


class Case(NamedTuple):
    """What is compared within one run: a workload, an optimizer, and whether XLA compiles the step."""

    workload: Workload
    optimizer: str
    jit_compile: bool

    def __str__(self) -> str:
        """The case as the table names it."""
        return f"{self.workload.name}, {self.optimizer}, {'xla' if self.jit_compile else 'plain'}"

    @property
    def writes_rows(self) -> bool:
        """Whether the update writes only the rows that a step touches; else all of them are touched."""
        return bool(self.workload.touched) and self.optimizer in SPARSE

    @property
    def keras_3(self) -> bool:
        """Whether the optimizer is of Keras 3."""
        return self.optimizer.startswith("keras")


def cases(workloads: list[Workload]) -> Iterator[Case]:
    """Every case of some workloads."""
    sparse = [each for each in workloads if each.touched]
    for workload in workloads:
        optimizers = SPARSE if workload.touched else DENSE
        if workload.touched and workload is sparse[-1]:
            optimizers = [*optimizers, "keras.Adam", "legacy.Adam"]
        for optimizer, jit_compile in itertools.product(optimizers, [False, True]):
            yield Case(workload, optimizer, jit_compile)


def _policy(case: Case, **fields: Any) -> dict[str, Any]:
    """The policy of a case; of a model what is of rank 2 and more decays.

    All rows of a model's embeddings do, as with the other contenders; of a recommender's table those that are touched.
    """
    fuse = {"fuse": fields.pop("fuse")} if "fuse" in fields else {}
    if not case.workload.touched:
        fields = {"sparse": "all", **fields}
    rate = WEIGHT_DECAY if fields.get("semantics") == "adamw" else RATE
    rules = [{"weight_decay": rate}]
    if not case.workload.decays_all:
        rules = [{"rank": ">=2", "weight_decay": rate}, {"weight_decay": 0}]
    return {"version": 1, **fuse, "defaults": fields, "rules": rules}


class Step:
    """A training step under construction; each contender changes one thing of it."""

    def __init__(self, case: Case) -> None:
        """Makes variables and optimizer."""
        self.case = case
        make: Any = keras.Variable if case.keras_3 else tf.Variable
        self.built: Built = build(case.workload, make)
        variables = self.built.variables
        self.decayed = [each for each in variables if case.workload.decays_all or len(each.shape) >= 2]
        self.undecayed = [each for each in variables if not any(each is other for other in self.decayed)]
        self.optimizer = OPTIMIZERS[case.optimizer](LEARNING_RATE)
        self.terms: Callable[[], Any] | None = None
        self.after: Callable[..., None] = lambda *_: None
        self.policy: dict[str, Any] | None = None
        self.warnings: list[str] = []

    def function(self) -> Any:
        """The step as a function of the workload's arguments, not yet traced."""
        variables, losses = self.built.variables, self.built.losses
        optimizer, terms, after = self.optimizer, self.terms, self.after
        make_slots(optimizer, variables)

        def step(*arguments: Any) -> None:
            with tf.GradientTape() as tape:
                targets, gradients_of_targets = losses(*arguments)
                if terms is not None:
                    targets, gradients_of_targets = [*targets, terms()], [*gradients_of_targets, tf.ones([])]
            watched = [tensor_of(variable) for variable in variables]
            gradients: Any = tape.gradient(targets, watched, output_gradients=gradients_of_targets)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            after(*arguments)

        traced: Any = tf.function(step, jit_compile=self.case.jit_compile or None)
        return traced if self.policy is None else graphwd.with_weight_decay(self.policy)(traced)


def make_slots(optimizer: Any, variables: list[Any]) -> None:
    """Makes an optimizer's own variables: XLA compiles no step that does."""
    if isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer.build(variables)
    else:
        optimizer._create_all_weights(variables)


def _graphwd(**fields: Any) -> Callable[[Step], None]:
    def change(step: Step) -> None:
        step.policy = _policy(step.case, **fields)
        try:
            graphwd.Policy.from_dict(step.policy)
        except PolicyError as error:
            raise CannotRunError(f"this graphwd refuses the policy: {error}") from error

    return change


def _own(step: Step) -> None:
    """The optimizer of Keras 3 with the weight decay that it has itself."""
    make = keras.optimizers.AdamW if step.case.optimizer == "keras.Adam" else OPTIMIZERS[step.case.optimizer]
    step.optimizer = make(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    if step.undecayed:
        step.optimizer.exclude_from_weight_decay(var_list=step.undecayed)


def _l2_terms(step: Step) -> Any:
    return RATE * tf.add_n([tf.nn.l2_loss(tensor_of(variable)) for variable in step.decayed])


def _l2(step: Step) -> None:
    step.terms = lambda: _l2_terms(step)


def _assign_loop(step: Step) -> None:
    def after(*_: Any) -> None:
        for variable in step.decayed:
            variable.assign(variable * (1 - RATE))

    step.after = after


def _assign_rows(step: Step) -> None:
    """The same by hand for the rows of the table that were touched; no row is there twice."""
    table, *others = step.decayed

    def after(ids: tf.Tensor, *_: Any) -> None:
        rows = tf.gather(tensor_of(table), ids) * (1 - RATE)
        tensor_of(table).scatter_update(tf.IndexedSlices(rows, ids))
        for variable in others:
            variable.assign(variable * (1 - RATE))

    step.after = after


def _second_optimizer(step: Step) -> None:
    """SGD with a learning rate of 1 on the L2 terms, once the step is done."""
    name = "keras.SGD" if step.case.keras_3 else "legacy.SGD"
    second = OPTIMIZERS[name](1.0)
    make_slots(second, step.decayed)

    def after(*_: Any) -> None:
        with tf.GradientTape() as tape:
            terms = _l2_terms(step)
        gradients: Any = tape.gradient(terms, [tensor_of(variable) for variable in step.decayed])
        second.apply_gradients(zip(gradients, step.decayed, strict=True))

    step.after = after


def _floor(step: Step) -> None:
    ops: Any = tf.raw_ops

    def after(*arguments: Any) -> None:
        decayed = [tensor_of(variable) for variable in step.decayed]
        if step.case.workload.touched:
            table, ids = decayed.pop(0), arguments[0]
            rows = ops.ResourceGather(resource=table.handle, indices=ids, dtype=tf.float32)
            ops.ResourceScatterUpdate(resource=table.handle, indices=ids, updates=rows)
        factor = tf.constant(1 - RATE)
        for variable in decayed:
            value = ops.ReadVariableOp(resource=variable.handle, dtype=tf.float32)
            ops.AssignVariableOp(resource=variable.handle, value=ops.Mul(x=value, y=factor))

    step.after = after


def _at_once(step: Step) -> None:
    """One product for all variables, as optimizers with multi-tensor kernels decay: joined, scaled and split again."""
    ops: Any = tf.raw_ops

    def after(*_: Any) -> None:
        decayed = [tensor_of(variable) for variable in step.decayed]
        values = [ops.ReadVariableOp(resource=variable.handle, dtype=tf.float32) for variable in decayed]
        joined = tf.concat([tf.reshape(value, [-1]) for value in values], 0)
        parts = tf.split(joined * (1 - RATE), [variable.shape.num_elements() for variable in decayed])
        for variable, part in zip(decayed, parts, strict=True):
            ops.AssignVariableOp(resource=variable.handle, value=tf.reshape(part, variable.shape))

    step.after = after


CONTENDERS: Mapping[str, Callable[[Step], None]] = {
    UNDECAYED: lambda _: None,
    FLOOR: _floor,
    "graphwd decoupled": _graphwd(semantics="decoupled"),
    "graphwd decoupled, all rows": _graphwd(semantics="decoupled", sparse="all"),
    "graphwd decoupled, fuse: xla": _graphwd(semantics="decoupled", fuse="xla"),
    "graphwd adamw": _graphwd(semantics="adamw"),
    "graphwd adamw, fuse: xla": _graphwd(semantics="adamw", fuse="xla"),
    OWN: _own,
    "L2 in the loss": _l2,
    "assign loop": _assign_loop,
    "assign loop, rows touched": _assign_rows,
    "second optimizer": _second_optimizer,
    AT_ONCE: _at_once,
}
"""What each contender changes of the step."""
BY_ROWS = {"graphwd decoupled, all rows", "assign loop, rows touched"}
"""Those that are different from others only where a step touches some rows."""


def contenders_of(case: Case) -> list[str]:
    """The contenders of a case, those that cannot run included."""
    left_out = set() if case.workload.touched else BY_ROWS
    if case.workload.count < 2:
        left_out = {*left_out, AT_ONCE}
    return [name for name in (*CONTENDERS, ADDONS) if name not in left_out]


def why_not(case: Case, contender: str) -> str | None:
    """Why there is no such contender in a case; None where there is one."""
    if contender == OWN and not case.keras_3:
        return "tf_keras legacy optimizers have no weight decay of their own"
    if contender == ADDONS:
        if case.keras_3:
            return "it extends the tf_keras legacy optimizers: see there"
        if case.workload.kind == "bert":
            return "keras_hub does not run on its last TensorFlow"
    return None


def make(case: Case, contender: str) -> tuple[Step, Callable[[], Any]]:
    """Makes a contender's step and runs it once.

    Raises:
        CannotRunError: it cannot run.
    """
    step = Step(case)
    CONTENDERS[contender](step)
    logger = logging.getLogger("graphwd")
    handler = _Collect(step.warnings)
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        function = step.function()
        function(*step.built.arguments)
    except tf.errors.OpError as error:  # an op that XLA does not compile; whatever else fails is no reason
        raise CannotRunError(f"{type(error).__name__}: {_first_line(str(error))}") from error
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    return step, lambda: function(*step.built.arguments)


def _first_line(message: str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in message.splitlines()]
    said = [line for line in lines if line and line != "Detected at node defined at (most recent call last):"]
    return said[0][:300] if said else "no message"


class _Collect(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())
