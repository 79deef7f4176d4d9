# pyright: basic
"""Decays as TensorFlow code: each way in which a decay enters an update is one function of tensors.

graphwd traces each function once for each dtype and splices the trace into bodies. Parameters are wired by their names:

* ``handle``: the variable's resource handle, or the v1 reference itself.
* ``weight``: the variable's content, where the body has it as a tensor; else it is read from ``handle``.
* ``rate``: a scalar, the rate of this step.
* ``factor``: a scalar, 1 - rate.
* ``indices``: rows of the variable, integers of any shape. ``rows``: likewise, a vector.
* ``before``: the variable's content, or those rows of it, before the update; where the formula asks for the update.
* ``step``: a scalar of float64, the number of updates before this one.
* ``initial``: the handle of the variable that keeps the first weight; where the formula asks for that.
* ``seen``: the handle of the variable that adds up what decays take; where they are watched.

``dtype`` is the variable's. Arithmetic on half precision is done in float32 (`wide`). The name of an op is its role;
``decay`` is the op that all that waited for the update waits for, or that is used in place of what was used.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from graphwd.decay.formulas import Formula
from graphwd.decay.schedules import Schedule

_RAW = tf.raw_ops
_Optional = tf.Tensor | None


def wide(dtype: str) -> str:
    """The dtype in which the decay of a variable is computed: its own, or float32 for half precision."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def learning_rate_times(rate: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
    """Returns the rate of this step, where it is a multiple of the learning rate that this step uses."""
    return times(rate, _cast(learning_rate, rate.dtype, "learning_rate"))


def one_number(learning_rate: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate, which is one number, or the step fails."""
    return _RAW.EnsureShape(input=learning_rate, shape=[], name="one_number")


def times(rate: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns the product of a rate and a scalar."""
    return _RAW.Mul(x=_cast(factor, rate.dtype, "widened_factor"), y=rate, name="factor")


def times_variable(rate: tf.Tensor, handle: tf.Tensor, *, dtype: str) -> tf.Tensor:
    """Returns the product of a rate and the content of a scalar variable, of a dtype."""
    return times(rate, _RAW.ReadVariableOp(resource=handle, dtype=dtype, name="read_factor"))


def one_less(rate: tf.Tensor) -> tf.Tensor:
    """Returns 1 - rate."""
    return _RAW.Sub(x=tf.constant(1, rate.dtype, name="one"), y=rate, name="kept")


def count(handle: tf.Tensor, *, dtype: str) -> tf.Tensor:
    """Returns what a counter holds, in float64, which is exact below 2**53."""
    return _cast(_read(handle, dtype, "counter"), tf.float64, "step")


def count_up(handle: tf.Tensor, *, dtype: str) -> None:
    """Adds 1 to a counter."""
    _RAW.AssignAddVariableOp(resource=handle, value=tf.constant(1, dtype, name="one"), name="steps")


def scheduled(step: tf.Tensor, *, schedule: Schedule) -> tf.Tensor:
    """Returns the rate of a schedule, by the number of updates before this one."""
    with tf.name_scope(schedule.scope):
        return schedule(step)


def multiply(handle: tf.Tensor, factor: tf.Tensor, *, dtype: str) -> None:
    """Multiplies, w <- factor · w: reads and writes 2N bytes, and serves the formula l2 alone."""
    weight = _read(handle, dtype)
    _assign(handle, _narrowed(_RAW.Mul(x=_widened(weight), y=factor, name="scaled"), dtype))


def see(
    seen: tf.Tensor,
    rate: tf.Tensor,
    scaled: tf.Tensor,
    weight: _Optional = None,
    gradient: _Optional = None,
    indices: _Optional = None,
    *,
    rows: int | None = None,
) -> None:
    """Adds to a variable what one decay does: 1, its rate, the norm of what it takes, the norm of a decayed gradient.

    Args:
        seen: the handle of the variable, a vector of float64.
        rate: the rate of this step.
        scaled: what the weight loses; where ``weight`` is given, what is left of that.
        weight: the weight, or rows of it, ahead of the decay.
        gradient: the gradient without the decay.
        indices: the rows that ``scaled`` is of; one that repeats counts once.
        rows: the number of rows of the weight; needed with ``indices``.
    """
    taken = scaled if weight is None else _widened(weight) - scaled
    squares = tf.square(tf.cast(taken, tf.float64))
    if indices is not None:
        flat = tf.reshape(indices, [-1])
        times_met = tf.math.unsorted_segment_sum(tf.ones_like(flat, tf.float64), flat, rows)
        squares = tf.reshape(squares, [tf.size(flat), -1]) / tf.gather(times_met, flat)[:, tf.newaxis]
    total = (
        tf.constant(0, tf.float64) if gradient is None else tf.norm(tf.cast(_widened(gradient) + scaled, tf.float64))
    )
    sums = [tf.constant(1, tf.float64), tf.cast(rate, tf.float64), tf.sqrt(tf.reduce_sum(squares)), total]
    _RAW.AssignAddVariableOp(resource=seen, value=tf.stack(sums), name="seen")


def remember(handle: tf.Tensor, *, dtype: str) -> tf.Tensor:
    """Returns the weight before the update."""
    return _read(handle, dtype, "before")


def remember_rows(handle: tf.Tensor, indices: tf.Tensor, *, dtype: str) -> tf.Tensor:
    """Returns the rows of the weight at some indices before the update."""
    return _gather(handle, indices, dtype, "before")


def subtract(
    handle: tf.Tensor,
    rate: tf.Tensor,
    indices: _Optional = None,
    before: _Optional = None,
    initial: _Optional = None,
    *,
    dtype: str,
    formula: Formula,
    decayed: bool = False,
) -> None:
    """Subtracts, w <- w - rate · p(w), or only the rows at some indices; where ``decayed``, p is of what was before.

    An index that repeats writes the same row again. Not once each, by ``Unique``: where the indices are themselves of a
    size that only the run tells, XLA's counts what lies behind their end.
    """
    weight = _read(handle, dtype) if indices is None else _gather(handle, indices, dtype)
    lost = _scaled(weight, rate, formula, before, _first(initial, dtype, indices), of_before=decayed)
    if indices is not None:
        _scatter_update(handle, indices, _narrowed(_RAW.Sub(x=_widened(weight), y=lost, name="left"), dtype))
    elif handle.dtype == tf.resource:
        _RAW.AssignSubVariableOp(resource=handle, value=_narrowed(lost, dtype), name="decay")
    else:
        _RAW.AssignSub(ref=handle, value=_narrowed(lost, dtype), use_locking=True, name="decay")


def multiply_rows(handle: tf.Tensor, factor: tf.Tensor, indices: tf.Tensor, *, dtype: str) -> None:
    """Multiplies the rows of w at some indices by the factor."""
    rows = _widened(_gather(handle, indices, dtype))
    _scatter_update(handle, indices, _narrowed(_RAW.Mul(x=rows, y=factor, name="scaled"), dtype))


def subtract_rows_once(
    handle: tf.Tensor, rate: tf.Tensor, indices: tf.Tensor, initial: _Optional = None, *, dtype: str, formula: Formula
) -> None:
    """Subtracts from rows, in one op from each, for variables that others write without waiting.

    Each row once, by ``Unique``: none of this is compiled by XLA.
    """
    rows, _ = _unique(indices)
    lost = _scaled(_gather(handle, rows, dtype), rate, formula, None, _first(initial, dtype, rows))
    lost = _narrowed(lost, dtype)
    if handle.dtype == tf.resource:
        _RAW.ResourceScatterSub(resource=handle, indices=rows, updates=lost, name="decay")
    else:
        _RAW.ScatterSub(ref=handle, indices=rows, updates=lost, use_locking=True, name="decay")


def in_value(
    value: tf.Tensor, weight: tf.Tensor, rate: tf.Tensor, initial: _Optional = None, *, dtype: str, formula: Formula
) -> tf.Tensor:
    """Returns v - rate · p(w), for an update that writes a value v which has the weight in it."""
    total = _widened(value, "widened_value")
    before = weight if formula.of_update else None
    scaled = _scaled(weight, rate, formula, before, _first(initial, dtype), after=total)
    return _last(_RAW.Sub(x=total, y=scaled, name=_last_role(dtype)), dtype)


def in_gradient(
    gradient: tf.Tensor, weight: tf.Tensor, rate: tf.Tensor, initial: _Optional = None, *, dtype: str, formula: Formula
) -> tf.Tensor:
    """Returns g + rate · p(w), for a dense gradient of the shape of the weight."""
    scaled = _scaled(weight, rate, formula, None, _first(initial, dtype))
    return _last(_RAW.AddV2(x=_widened(gradient, "widened_gradient"), y=scaled, name=_last_role(dtype)), dtype)


def in_gradient_by_reading(
    gradient: tf.Tensor, handle: tf.Tensor, rate: tf.Tensor, initial: _Optional = None, *, dtype: str, formula: Formula
) -> tf.Tensor:
    """The same, where the body has no tensor that is the weight."""
    return in_gradient(gradient, _read(handle, dtype), rate, initial, dtype=dtype, formula=formula)


def in_sparse_gradient(
    gradient: tf.Tensor,
    indices: tf.Tensor,
    handle: tf.Tensor,
    rate: tf.Tensor,
    initial: _Optional = None,
    *,
    dtype: str,
    formula: Formula,
    row_shape: Sequence[int],
) -> tf.Tensor:
    """Returns g + rate · p(w) for the rows that a sparse gradient is of, added to the first gradient of each row.

    Args:
        gradient: the values of the gradient, of the shape of ``indices`` and then of ``row_shape``.
        indices: the rows.
        handle: the variable's handle.
        rate: the rate.
        initial: the handle of what keeps the first weight.
        dtype: the variable's dtype.
        formula: the formula.
        row_shape: the shape of one row of the weight.

    Returns:
        The sum, of the shape of ``gradient``.
    """
    gradient = _widened(gradient, "widened_gradient")
    rows, numbers = _unique(indices, twice=True)
    decay = _scaled(_gather(handle, rows, dtype), rate, formula, None, _first(initial, dtype, rows))
    # For each row the position of its first gradient: the least of 0, 1, 2, ... that has the row's number. No
    # Range: on a GPU its operands or its result lie in host memory. UnsortedSegmentMin has no int64 there.
    ones = _RAW.OnesLike(x=numbers, name="ones")
    count = _RAW.Cumsum(x=ones, axis=_constant(0, "axis"), exclusive=True, name="count")
    least = _RAW.UnsortedSegmentMin(
        data=_cast(count, tf.int32, "positions"),
        segment_ids=numbers,
        num_segments=_RAW.Size(input=rows, out_type=tf.int32, name="unique"),
        name="least",
    )
    column = _RAW.ExpandDims(input=_cast(least, tf.int64, "first"), axis=_constant(1, "last_axis"), name="column")
    flat = _RAW.Reshape(tensor=gradient, shape=tf.constant([-1, *row_shape], name="row_shape"), name="gradient")
    total = _RAW.TensorScatterAdd(tensor=flat, indices=column, updates=decay, name="added")
    shape = _RAW.Shape(input=gradient, out_type=tf.int32, name="shape")
    return _last(_RAW.Reshape(tensor=total, shape=shape, name=_last_role(dtype)), dtype)


def _unique(indices: tf.Tensor, *, twice: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """The rows among some indices, each once; and for each index, the number of its row among them.

    All of them int64, whatever they were: on a GPU much of what works on int32 works in the memory of the host.
    """
    vector = _constant(-1, "vector", [1])
    flat = _RAW.Reshape(tensor=_cast(indices, tf.int64, "wide_indices"), shape=vector, name="indices")
    if twice:  # which changes no first place, and spares XLA a list of one, whose dynamic size it trips over
        flat = _RAW.ConcatV2(values=[flat, flat], axis=_constant(0, "axis"), name="twice")
    return _RAW.Unique(x=flat, out_idx=tf.int64, name="rows")


def _scaled(
    weight: tf.Tensor,
    rate: tf.Tensor,
    formula: Formula,
    before: _Optional,
    initial: _Optional,
    *,
    after: _Optional = None,
    of_before: bool = False,
) -> tf.Tensor:
    """What the weight loses.

    Args:
        weight: the weight.
        rate: the rate.
        formula: the formula.
        before: the weight before the update; None where the formula does not ask for it.
        initial: the first weight; likewise.
        after: what the update makes of the weight, if that is not ``weight``.
        of_before: whether ``before`` is what is decayed.
    """
    tensors = {"weight": _widened(weight)}
    if initial is not None:
        tensors["initial"] = _widened(initial, "widened_initial")
    if before is not None:
        tensors["before"] = _widened(before, "widened_before")
        updated = tensors["weight"] if after is None else after
        tensors["update"] = _RAW.Sub(x=tensors["before"], y=updated, name="update")
        tensors["weight"] = tensors["before"] if of_before else tensors["weight"]
    with tf.name_scope("formula"):  # whose ops may not take the names that are roles
        direction = formula(**tensors)
    return _RAW.Mul(x=direction, y=rate, name="scaled")


def _first(initial: _Optional, dtype: str, rows: _Optional = None) -> _Optional:
    """The first weight, or rows of it."""
    if initial is None:
        return None
    return _read(initial, dtype, "initial") if rows is None else _gather(initial, rows, dtype, "initial")


def _read(handle: tf.Tensor, dtype: str, role: str = "read") -> tf.Tensor:
    if handle.dtype != tf.resource:
        return _RAW.Identity(input=handle, name=role)
    return _RAW.ReadVariableOp(resource=handle, dtype=dtype, name=role)


def _gather(handle: tf.Tensor, rows: tf.Tensor, dtype: str, role: str = "read") -> tf.Tensor:
    if handle.dtype != tf.resource:
        return _RAW.Gather(params=handle, indices=rows, name=role)
    return _RAW.ResourceGather(resource=handle, indices=rows, dtype=dtype, name=role)


def _assign(handle: tf.Tensor, value: tf.Tensor) -> None:
    if handle.dtype != tf.resource:
        _RAW.Assign(ref=handle, value=value, name="decay")
    else:
        _RAW.AssignVariableOp(resource=handle, value=value, name="decay")


def _scatter_update(handle: tf.Tensor, rows: tf.Tensor, value: tf.Tensor) -> None:
    if handle.dtype != tf.resource:
        _RAW.ScatterUpdate(ref=handle, indices=rows, updates=value, name="decay")
    else:
        _RAW.ResourceScatterUpdate(resource=handle, indices=rows, updates=value, name="decay")


def _last_role(dtype: str) -> str:
    """The role of an op that is the last of a decay unless a cast follows."""
    return "decay" if wide(dtype) == dtype else "summed"


def _last(total: tf.Tensor, dtype: str) -> tf.Tensor:
    return _cast(total, dtype, "decay")


def _widened(tensor: tf.Tensor, role: str = "widened") -> tf.Tensor:
    return _cast(tensor, wide(tensor.dtype.name), role)


def _narrowed(tensor: tf.Tensor, dtype: str) -> tf.Tensor:
    return _cast(tensor, dtype, "narrowed")


def _cast(tensor: tf.Tensor, dtype: tf.DType | str, role: str) -> tf.Tensor:
    target = tf.as_dtype(dtype)
    return tensor if tensor.dtype == target else _RAW.Cast(x=tensor, DstT=target, name=role)


def _constant(value: int, role: str, shape: Sequence[int] = ()) -> tf.Tensor:
    return tf.constant(value, tf.int32, shape, role)
