"""Puts one decay into a body, for each way in which a decay enters an update.

After the write that completes an update, on its device, come three nodes::

    read  = ReadVariableOp(handle)  ^write        read  = ReadVariableOp(handle)  ^write
    scaled = Mul(read, 1 - rate)            or    scaled = Mul(read, rate)
    decay = AssignVariableOp(handle, scaled)      decay = AssignSubVariableOp(handle, scaled)

and everything that waited for the write waits for the last of them. The left form moves fewer bytes; the right one
serves on a parameter server, and where rounding 1 - rate to the variable's dtype would change the rate by more than
`MAX_RATE_ERROR`. Where the rate is a tensor, ``Mul(learning rate, rate)``, the left form serves in float64, and in
float32 where the step counts its updates, by which the factor is rounded down or up (`graphwd.decay.rounding`).

Where only the rows are decayed that a sparse update touches, they are ``ResourceGather(handle, indices)``, ``Mul`` and
``ResourceScatterUpdate(handle, indices, scaled)``, in the second case with a ``Sub`` between.

Before an update come the same three, but the read waits for all that the update is computed from, and the write and
what is computed for it alone wait for the decay.
Where the update overwrites the weight with a sum that the weight is a term of, it is ``scaled = Mul(weight, rate)`` and
``decay = Sub(sum, scaled)``, which is written in place of the sum. In a gradient come ``read``, ``scaled`` and
``decay = AddV2(gradient, scaled)``.

The nodes themselves are traced from `graphwd.decay.arithmetic`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graphwd.decay import arithmetic
from graphwd.decay.formulas import l2
from graphwd.decay.rounding import rounded_factor
from graphwd.graph.edge import EdgeText, control_edge, data_input, node_of, output_edge
from graphwd.graph.fragment import Kind, Reference, fragment
from graphwd.graph.graph import DTYPE_NAMES
from graphwd.graph.ops import WRITE_OPS
from graphwd.planning.injections import EPSILON, After, Before, Elsewhere, InGradient, Injection, InValue, Own
from graphwd.rewriting.splice import Added, Splicer

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef

MAX_RATE_ERROR = 0.01
"""By how much, relatively, rounding the factor may change the rate (design: 1 %)."""


class DecayWriter:
    """Adds one decay to a body."""

    def __init__(
        self, added: Added, nodes: Mapping[str, NodeDef], injection: Injection, brought: Mapping[Elsewhere, EdgeText]
    ) -> None:
        """Prepares to add; nothing is changed yet.

        Args:
            added: the body.
            nodes: by name, at least those of its nodes that the injection touches.
            injection: the decay.
            brought: the edges of what was brought into the body.
        """
        write = nodes[injection.site.node]
        with_write = not isinstance(injection, InGradient)
        place = write.device or (injection.variable.device if with_write else "")
        self._nodes = nodes
        self._write = write
        self._injection = injection
        self._brought = brought
        self._dtype = injection.variable.dtype
        self._multiplies = False
        self._splicer = Splicer(added, write, place, with_write=with_write)
        self.delayed: list[tuple[str, str]] = []
        """The nodes of the original that wait for an injected one, each with that; but not the write for its decay."""

    def add(self) -> str:
        """Adds the decay; returns the node that all that waited for the write waits for, or that gives what it uses."""
        match self._injection:
            case After() as after:
                self._after(after)
            case Before() as before:
                self._before(before)
            case InValue() as place:
                edges = {"value": place.value, "weight": place.weight, "rate": self._rate("factor")}
                self._lead_on(self._splice(arithmetic.in_value, edges, formula=self._injection.formula))
            case InGradient() as place:
                self._in_gradient(place)
            case other:
                raise AssertionError(f"{type(other).__name__} is no type of place")
        nodes = self._splicer.nodes
        if self._injection.formula.own and "read" in nodes:
            # A formula of the user's own need not use the weight that is read, and by that read the decay waits.
            nodes["decay"].input.append(control_edge(nodes["read"].name))
        if self._injection.seen is not None:
            decay = nodes["decay"]
            self._see(self._injection.seen)
            decay.input.append(control_edge(nodes["seen"].name))
        return nodes["decay"].name

    @property
    def carrier(self) -> NodeDef:
        """The node that carries the record of the decay: its read, else its product."""
        nodes = self._splicer.nodes
        return nodes["read"] if "read" in nodes else nodes["scaled"]

    def _see(self, seen: Own) -> None:
        """Adds up what the decay takes, ahead of the decay itself."""
        nodes, injection = self._splicer.nodes, self._injection
        edges = {
            "seen": self._brought[seen],
            "rate": self._rate("rate"),
            "scaled": output_edge(nodes["scaled"].name, "z"),
        }
        if self._multiplies:
            read = nodes["read"]
            edges["weight"] = output_edge(read.name, "value" if read.op == "ReadVariableOp" else "output")
        options: dict[str, Any] = {}
        if isinstance(injection, InGradient) and injection.entry.indices is None:
            edges["gradient"] = injection.entry.tensor
        elif not isinstance(injection, InGradient) and not injection.shared and (indices := self._rows()):
            edges |= indices
            options["rows"] = (injection.variable.shape or (None,))[0]
        kinds = {name: self._kind(name) for name in edges}
        self._splicer.splice(fragment(arithmetic.see, kinds, **options), edges)

    def _after(self, after: After) -> None:
        """Decays behind the write; where the formula asks what the update subtracts, with a read ahead of that."""
        early = after.early
        if early is None:
            self._in_place([self._write.name])
            return
        function = arithmetic.remember_rows if self._injection.rows else arithmetic.remember
        before = self._splice(function, {**self._handle(), **self._rows()}, early.waits)
        assert before is not None
        self._delay(early.write, node_of(before))
        options = {"decayed": early.decayed} if early.decayed else {}
        self._in_place([self._write.name], {"before": before}, **options)

    def _delay(self, name: str, wait: str) -> None:
        """Makes a node of the original wait for an injected one."""
        self._nodes[name].input.append(control_edge(wait))
        self.delayed.append((name, wait))

    def _before(self, before: Before) -> None:
        """Decays ahead of the write, and lets the update read the weight decayed."""
        self._in_place(before.readiness.waits)
        decay = self._splicer.nodes["decay"].name
        for name, uses in before.readiness.rereads:
            reread = self._splicer.copy("reread", self._nodes[name], decay)
            output = "value" if self._nodes[name].op == "ReadVariableOp" else "output"
            for use in uses:  # which may take the weight through an alias of the read
                self._nodes[use.node].input[use.position] = output_edge(reread, output)
            # Not all that is computed from it need be part of what is written.
            self._write.input.append(control_edge(reread))
        for name in before.readiness.followers:
            self._delay(name, decay)
        self._write.input.append(control_edge(decay))

    def _in_gradient(self, place: InGradient) -> None:
        entry = place.entry
        edges = {"gradient": entry.tensor, "rate": self._rate("rate")}
        if entry.indices is None and place.weight is not None:
            edges |= {"weight": place.weight}
            total = self._splice(arithmetic.in_gradient, edges, formula=self._injection.formula)
        elif entry.indices is None:
            edges |= self._handle()
            total = self._splice(arithmetic.in_gradient_by_reading, edges, entry.waits, formula=self._injection.formula)
        else:
            edges |= {"indices": entry.indices, **self._handle()}
            shape = self._injection.variable.shape or ()
            row_shape = tuple(size for size in shape[1:] if size is not None)
            options = {"formula": self._injection.formula, "row_shape": row_shape}
            total = self._splice(arithmetic.in_sparse_gradient, edges, entry.waits, **options)
        self._lead_on(total)

    def _in_place(self, waits: Sequence[str], others: Mapping[str, EdgeText] | None = None, **options: Any) -> None:
        """Reads the weight, decays it and writes it, or the rows that the write is of."""
        function, strength = self._form()
        if "factor" not in strength:
            options["formula"] = self._injection.formula
        self._multiplies = "factor" in strength
        self._splice(function, {**self._handle(), **strength, **self._rows(), **(others or {})}, waits, **options)

    def _rows(self) -> Mapping[str, EdgeText]:
        """The edge of the indices, where only the rows are decayed that the write is of."""
        row = WRITE_OPS[self._write.op].rows if self._injection.rows else None
        return {} if row is None else {"indices": data_input(self._write, row)}

    def _form(self) -> tuple[Callable[..., Any], Mapping[str, EdgeText]]:
        """The cheapest accurate function that decays in place, and the rate as it takes it."""
        rows = self._injection.rows
        if self._injection.shared:  # an update that comes between the read and the write must not be lost
            return arithmetic.subtract_rows_once if rows else arithmetic.subtract, {"rate": self._rate("factor")}
        if self._injection.formula is l2 and (factor := self._factor()):
            return arithmetic.multiply_rows if rows else arithmetic.multiply, {"factor": factor}
        return arithmetic.subtract, {"rate": self._rate("factor")}

    def _factor(self) -> EdgeText | None:
        """1 - rate; None where rounding it would change the rate too much."""
        rate, rounding, wide = self._injection.rate, self._injection.rounding, arithmetic.wide(self._dtype)
        if rate.is_constant:
            keeps = keeps_rate(rate.number, EPSILON[wide])
            return self._splicer.constant("factor", 1 - rate.number, wide) if keeps else None
        if wide == "float64":
            piece = fragment(arithmetic.one_less, {"rate": wide})
            return self._splicer.shared(piece, {"rate": self._rate("rate")})
        if rounding is None:
            return None
        edges = {"rate": self._rate("rate"), "threshold": self._brought[rounding]}
        return self._splicer.shared(fragment(rounded_factor, {"rate": wide, "threshold": "float64"}), edges)

    def _rate(self, role: str) -> EdgeText:
        """The rate of this step: a number under the name of a role, or a product of scalars."""
        rate, wide = self._injection.rate, arithmetic.wide(self._dtype)
        edge = self._splicer.constant(role if rate.is_constant else "rate", rate.number, wide)
        if rate.learning_rate is not None:
            kinds = {"rate": wide, "learning_rate": rate.learning_rate.dtype}
            tensor = rate.learning_rate.tensor
            if not rate.learning_rate.certain:
                piece = fragment(arithmetic.one_number, {"learning_rate": rate.learning_rate.dtype})
                tensor = self._splicer.shared(piece, {"learning_rate": tensor})
            for _ in range(rate.power):
                edges = {"rate": edge, "learning_rate": tensor}
                edge = self._splicer.shared(fragment(arithmetic.learning_rate_times, kinds), edges)
        for factor in rate.factors:
            scalar = self._brought.get(factor.tensor, factor.tensor.edge)
            if factor.tensor.dtype == "resource":
                piece = fragment(arithmetic.times_variable, {"rate": wide, "handle": "resource"}, dtype=factor.dtype)
                edge = self._splicer.shared(piece, {"rate": edge, "handle": scalar})
            else:
                piece = fragment(arithmetic.times, {"rate": wide, "factor": factor.dtype})
                edge = self._splicer.shared(piece, {"rate": edge, "factor": scalar})
        return edge

    def _handle(self) -> Mapping[str, EdgeText]:
        return {"handle": data_input(self._write, 0)}

    def _splice(
        self, function: Callable[..., Any], edges: Mapping[str, EdgeText], waits: Sequence[str] = (), **options: Any
    ) -> EdgeText | None:
        """Splices a function of tensors, whose parameters are edges of the body."""
        initial = self._injection.initial
        if initial is not None and "formula" in options:
            edges = {**edges, "initial": self._brought[initial]}
        kinds = {name: self._kind(name) for name in edges}
        return self._splicer.splice(fragment(function, kinds, dtype=self._dtype, **options), edges, waits)

    def _kind(self, parameter: str) -> Kind:
        match parameter:
            case "handle":
                return Reference(self._dtype) if self._injection.variable.reference else "resource"
            case "initial" | "seen":
                return "resource"
            case "rate" | "factor" | "scaled":
                return arithmetic.wide(self._dtype)
            case "indices":
                return self._index_dtype()
            case _:
                return self._dtype

    def _index_dtype(self) -> str:
        if isinstance(self._injection, InGradient):
            assert self._injection.entry.index_dtype is not None
            return DTYPE_NAMES[self._injection.entry.index_dtype]
        return DTYPE_NAMES[self._write.attr["Tindices"].type]

    def _lead_on(self, edge: EdgeText | None) -> None:
        """Gives the uses of the original what was computed in its place."""
        assert edge is not None
        for use in self._injection.uses:
            self._nodes[use.node].input[use.position] = edge


def keeps_rate(rate: float, epsilon: float) -> bool:
    """Whether 1 - rate, rounded to nearest, stands for a rate close enough to the one asked for.

    Args:
        rate: the rate, in [0, 1).
        epsilon: the distance from 1 to the next larger number of the dtype.

    Returns:
        Whether the rounding changes the rate by at most `MAX_RATE_ERROR`, relatively.
    """
    step = epsilon / 2  # numbers below 1 are at most half as far apart as those above it
    rounded = round(rate / step) * step
    return abs(rounded - rate) <= MAX_RATE_ERROR * rate
