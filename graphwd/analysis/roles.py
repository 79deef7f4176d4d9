"""What the forward pass uses every trainable variable for, read off the graph and never off names.

The step is walked once more, on the domain of `graphwd.analysis.natures`. Where a weight meets something of the forward
pass, the op votes for a role. A convolution, a matrix product and a look-up can mean one thing only, and mean the same
in the backward pass: their votes come first. Sums and products of elements are met on the way back, too, and in
optimizers: of their votes the first in program order counts, since the forward pass comes first.

What is not seen for certain is `Role.OTHER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from graphwd.analysis import factors
from graphwd.analysis.natures import (
    ACTIVATION,
    JOINING_OPS,
    NO_VARIABLE,
    NOTHING,
    TRANSFER,
    Known,
    Nature,
    activation,
    add_up,
    compute,
    join,
    largest,
    result_of,
    root,
    square,
    weight_of,
)
from graphwd.analysis.sites import Frame, Path
from graphwd.analysis.walk import Walk
from graphwd.graph.body import Body, Node
from graphwd.graph.graph import Graph, Variable
from graphwd.graph.ops import CALL_OPS, WRITE_OPS, Form
from graphwd.graph.traits import (
    ADDITIVE_OPS,
    METADATA_OPS,
    PASS_THROUGH_OPS,
    QUOTIENT_OPS,
    READ_OPS,
    REFERENCE_OPS,
    Trait,
    ops_with,
)
from graphwd.policy.roles import Role


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a variable is used for.

    Attributes:
        role: its role.
        seen: the op that says so and how; no text where nothing was seen.
        normalized: whether what it produces goes straight into a normalization.
    """

    role: Role = Role.OTHER
    seen: str = ""
    normalized: bool = False

    @property
    def followed_by(self) -> str | None:
        """The word of policies for what comes after it."""
        return "norm" if self.normalized else None


class Purposes:
    """What the trainable variables of a step are used for; found when it is first asked for."""

    def __init__(self, graph: Graph | None) -> None:
        """Takes a step; None for one of which nothing is known."""
        self._graph = graph
        self._found: Mapping[int, Purpose] | None = None

    def of(self, variable: Variable) -> Purpose:
        """What a variable is used for."""
        if self._found is None:
            self._found = {} if self._graph is None else find_roles(self._graph)
        return self._found.get(variable.id, Purpose())


def find_roles(graph: Graph) -> Mapping[int, Purpose]:
    """Finds what every trainable variable is used for.

    Args:
        graph: the step.

    Returns:
        The purpose of every trainable variable, by its number.

    Raises:
        GraphError: the graph cannot be followed.
    """
    roles = _Roles(graph)
    roles.walk()
    return {variable.id: roles.purpose(variable) for variable in graph.variables if variable.trainable}


_CERTAIN = (Role.EMBEDDING, Role.DEPTHWISE, Role.KERNEL)
"""Roles that are voted for by ops with one meaning; the first of those that a variable has is its role."""


_NORMAL = (Nature.NORMALIZER, Nature.NORMALIZED)

_OFFSET_OPS = ops_with(Trait.OFFSET)
_CONVOLUTIONS = frozenset(["Conv2D", "Conv3D", "Conv", "XlaConv", "XlaConvV2"])
_LAST_IS_OUTPUT = _CONVOLUTIONS | {"MatMul", "BatchMatMulV2"}

_BATCHED = frozenset(["BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"])

_TABLE_RANK = 2
"""The rank of a table of embeddings; of more, the rows that are looked up may be kernels."""

_SQUARE = 2

_MOST_BIASES = 4
"""How many biases one variable may hold, as that of a GRU holds two; a table of positions is longer."""

_UPDATE_SUMS = (
    ADDITIVE_OPS | PASS_THROUGH_OPS | ops_with(Trait.CAST, Trait.SELECT) | {"Maximum", "Minimum", "ClipByValue", "Neg"}
)
"""Ops between the weight as it was and the weight that is written."""


class _Place(NamedTuple):
    """A node that is met on the walk."""

    node: Node
    path: Path


class _Vote(NamedTuple):
    """A role that an elementwise op speaks for."""

    role: Role
    seen: str
    path: Path
    node: str


_Rule = Callable[["_Roles", list[Known], _Place], list[Known]]


class _Roles(Walk[Known]):
    """Walks through the step and collects votes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, NOTHING)
        self._certain: dict[tuple[int, Role], str] = {}
        self._votes: dict[int, list[_Vote]] = {}
        self._updating: set[tuple[Path, str]] = set()
        self._normalized: set[int] = set()
        self._applied_to: set[int] = set()
        self._kept: dict[int, Sequence[int | None]] = {}
        self._chosen: dict[int, Purpose] = {}
        self._contents: dict[int, Known] = {}
        self._nodes: dict[Body, Mapping[str, Node]] = {}
        self._references = any(variable.reference for variable in graph.variables)

    def purpose(self, variable: Variable) -> Purpose:
        """What a variable is used for, after the walk."""
        if variable.id in self._chosen:
            return self._chosen[variable.id]
        normalized = variable.id in self._normalized
        for role in _CERTAIN:
            if (variable.id, role) in self._certain:
                return Purpose(role, self._certain[variable.id, role], normalized)
        for vote in self._votes.get(variable.id, ()):
            if (vote.path, vote.node) not in self._updating:
                return Purpose(vote.role, vote.seen, normalized and vote.role is not Role.OTHER)
        return Purpose()

    def root_value(self, name: str) -> Known:
        """The value of an argument of the step."""
        if name in self.graph.handles:
            return Known(handle=self.graph.handles[name].id)
        return activation(self.graph.last_size(name)) if name in self.graph.data else NOTHING

    def element(self) -> Known:
        """The value of an element of a dataset."""
        return ACTIVATION

    def elements(self, results: list[Known]) -> Known:
        """The value of a dataset whose elements are made of some results."""
        return largest([ACTIVATION, *results])

    def join(self, first: Known, second: Known) -> Known:
        """The value of a tensor that may be either of two."""
        return join(first, second)

    def node(self, node: Node, inputs: list[Known], path: Path) -> list[Known]:
        """The values of a node's outputs."""
        op = node.op
        if self._references:
            inputs = self._dereferenced(op, inputs)
        transfer = TRANSFER.get(op)
        if transfer is not None:
            return transfer(inputs)
        rule = self._RULES.get(op)
        if rule is not None:
            return rule(self, inputs, _Place(node, path))
        return self.call(node, inputs, path) if op in CALL_OPS else compute(inputs)

    def _dereferenced(self, op: str, inputs: list[Known]) -> list[Known]:
        """Replaces the v1 references among inputs by what they refer to, unless the op takes references."""
        if op in REFERENCE_OPS or op in METADATA_OPS or op in CALL_OPS or op in WRITE_OPS:
            return inputs
        variables = self.graph.variables
        return [
            self._content(known.handle) if known.handle >= 0 and variables[known.handle].reference else known
            for known in inputs
        ]

    # Variables.

    def _content(self, handle: int) -> Known:
        if handle not in self._contents:
            variable = self.graph.variables[handle] if handle >= 0 else None
            known = NOTHING
            if variable is not None:
                known = weight_of(frozenset([handle])) if variable.trainable else Known(nature=Nature.UNTRAINED)
            self._contents[handle] = known
        return self._contents[handle]

    def _read(self, inputs: list[Known], place: _Place) -> list[Known]:
        content = self._content(inputs[0].handle)
        return [content] if len(inputs) == 1 else self._look_up([content, *inputs[1:]], place)

    def _write(self, inputs: list[Known], place: _Place) -> list[Known]:
        node, path = place
        row, handle = WRITE_OPS[node.op], inputs[0].handle
        if row.form is Form.ASSIGN and handle >= 0 and self.graph.variables[handle].trainable:
            self._note_update(self._body_at(path), path, [node.inputs[row.value].node])
        return inputs[:1] if row.reference else []

    def _note_update(self, body: Body, path: Path, names: Sequence[str]) -> None:
        """Notes the sums that a written value is made of: a weight in them is what is updated, and not used."""
        nodes = self._nodes_of(body)
        left = list(names)
        while left:
            node = nodes.get(left.pop())
            if node is None or (path, node.name) in self._updating:
                continue
            if node.op in _UPDATE_SUMS:
                self._updating.add((path, node.name))
                left += [edge.node for edge in node.inputs]
            for callee in self.graph.callees(node):
                inner = self.graph.body(callee.function)
                frame = Frame(node.name, node.op, callee)
                self._note_update(inner, (*path, frame), [edge.node for edge in inner.results])

    def _body_at(self, path: Path) -> Body:
        return self.graph.body(path[-1].callee.function) if path else self.graph.root

    def _nodes_of(self, body: Body) -> Mapping[str, Node]:
        if body not in self._nodes:
            self._nodes[body] = {node.name: node for node in body.nodes}
        return self._nodes[body]

    # Ops with one meaning.

    def _look_up(self, inputs: list[Known], place: _Place) -> list[Known]:
        rows, indices = inputs[:2]
        if not rows.is_weight:
            return [ACTIVATION] if rows.nature else []
        if not indices.nature:  # the same rows at each step are a part of the weight
            return [rows._replace(whole=False)]
        self._note([rows], Role.EMBEDDING, place)
        return [result_of(rows.of, self._last_size(rows))._replace(rows=True)]

    def _contract(self, inputs: list[Known], place: _Place) -> list[Known]:
        weights = [known for known in inputs if known.is_weight]
        rest = [known for known in inputs if known.nature and not known.is_weight]
        if not weights:
            return [self._contract_rows(rest, place)] if largest(rest).passes else compute(inputs)
        if len(weights) > 1:
            return [self._contract_weights(weights, place)]
        (weight,) = weights
        self._note_kept(weight, inputs.index(weight), place)
        if rest and all(known.nature is Nature.UNTRAINED for known in rest):
            return [weight]  # as in the power iteration of a spectral norm
        role = Role.EMBEDDING if any(known.nature is Nature.ONE_HOT for known in rest) else Role.KERNEL
        if role is Role.KERNEL and self._is_depthwise(weight, rest, place.node.op):
            role = Role.DEPTHWISE
        self._note([weight], role, place)
        channels = self._last_size(weight) if place.node.op in _LAST_IS_OUTPUT else -1
        return [result_of(weight.of, channels)]

    def _contract_weights(self, weights: Sequence[Known], place: _Place) -> Known:
        """A layer on a learned input, which is the first, or two factors of a kernel: the sum with that will tell.

        Of one variable alone it is a function, such as the norm of a kernel.
        """
        if all(known.of == weights[0].of for known in weights):
            return weight_of(weights[0].of)._replace(computed=True)
        self._applied_to |= weights[0].of
        self._note(weights[1:], Role.KERNEL, place)
        factors = weights[0].of.union(*(known.of for known in weights))
        return Known(nature=Nature.ACTIVATION, of=weights[-1].of, factors=factors)

    def _contract_rows(self, rest: Sequence[Known], place: _Place) -> Known:
        """The product of activations; a kernel of several that the step's data chose from is one of them, perhaps."""
        chosen = [known for known in rest if known.rows and len(self._shape(known) or ()) > _TABLE_RANK]
        if len(chosen) != 1 or len(rest) == 1:
            return ACTIVATION
        (kernels,) = chosen
        self._choose(kernels, Role.KERNEL, place)
        return result_of(kernels.of, -1)

    def _choose(self, rows: Known, role: Role, place: _Place) -> None:
        for number in rows.of:
            self._chosen[number] = Purpose(role, f"{place.node.op}, {place.node.name}, of rows that are looked up")

    def _note_kept(self, weight: Known, position: int, place: _Place) -> None:
        """Notes the dimensions of a kernel that are left in the product."""
        shape = self._shape(weight)
        if shape is not None:
            self._kept.setdefault(min(weight.of), _kept_sizes(place.node, position, shape))

    def _is_depthwise(self, weight: Known, rest: Sequence[Known], op: str) -> bool:
        """Whether a convolution has as many groups as channels."""
        shape = self._shape(weight)
        if op not in _CONVOLUTIONS or shape is None or not rest:
            return False
        return shape[-2] == 1 and rest[0].channels > 1

    def _depthwise(self, inputs: list[Known], place: _Place) -> list[Known]:
        weight = inputs[1]
        if not weight.is_weight:
            return [ACTIVATION]
        self._note([weight], Role.DEPTHWISE, place)
        shape = self._shape(weight)
        return [result_of(weight.of, -1 if shape is None else _product(shape[-2:]))]

    def _normalize(self, inputs: list[Known], place: _Place) -> list[Known]:
        value, scale, offset = inputs[:3]
        for weight, what in ((scale, "scale"), (offset, "offset")):
            if weight.is_weight:
                self._vote([weight], Role.NORM, f"{place.node.op}, {what}", place)
        if value.alone and place.node.proto.attr["is_training"].b:
            self._normalized |= value.of
        nature = Nature.ACTIVATION if scale.is_weight or offset.is_weight else Nature.NORMALIZED
        statistic = Known(nature=Nature.STATISTIC, of=value.of, alone=value.alone)
        return [Known(nature=nature, channels=value.channels), *[statistic] * 5]

    # Elementwise ops.

    def _concatenate(self, inputs: list[Known], place: _Place) -> list[Known]:
        weights = [known for known in inputs if known.is_weight]
        if weights and largest(inputs).passes:
            self._vote(weights, Role.EMBEDDING, f"{place.node.op} with activations, as a token is", place)
        top = [known for known in inputs if known.nature]
        if len(top) == 1:
            return [top[0]._replace(channels=-1)]
        return [ACTIVATION] if largest(inputs).passes else compute(inputs)

    def _add(self, inputs: list[Known], place: _Place) -> list[Known]:
        weights = [known for known in inputs if known.is_weight]
        passing = [known for known in inputs if known.passes]
        if not passing:
            return compute(inputs)
        target = largest(passing)
        if not weights:
            self._add_rows(passing, place)
            frozen = any(known.nature is Nature.UNTRAINED for known in inputs)
            return [weight_of(target.factors) if target.factors and frozen else add_up(passing)]
        if target.factors and self._has_shape_of_product(weights[0], target.factors):
            return [weight_of(weights[0].of | target.factors)]
        return [self._add_to(target, weights, place)]

    def _add_rows(self, passing: Sequence[Known], place: _Place) -> None:
        """Notes the biases of kernels that are looked up, which are looked up with them."""
        rows = [known for known in passing if known.rows]
        layer = next((known.of for known in passing if known.of and known.of <= self._chosen.keys()), None)
        if len(rows) == 1 and layer and not rows[0].of <= layer:
            number, kernel = self._shape(rows[0]), self.graph.variables[min(layer)].shape
            if number and kernel and number[0] == kernel[0]:
                self._choose(rows[0], Role.BIAS, place)

    def _add_to(self, target: Known, weights: Sequence[Known], place: _Place) -> Known:
        """Votes for what weights are that are added to a tensor; returns the sum."""
        op, weight = place.node.op, weights[0]
        if target.nature in _NORMAL and self._fits_scale(weight, target):
            self._vote(weights, Role.NORM, f"{op} to what is normalized", place)
        elif weight.computed:
            self._vote(weights, Role.OTHER, f"{op} of a function of it to an activation", place)
        elif target.of and (op in _OFFSET_OPS or self._fits_layer(weight, target)):
            self._vote(weights, Role.BIAS, f"{op} to a product", place)
            return target._replace(of=target.of | weight.of, factors=frozenset(), scale=NO_VARIABLE)
        elif op in _OFFSET_OPS:
            self._vote(weights, Role.BIAS, op, place)
        elif len(self._sizes(weight) or ()) > 1:
            self._vote(weights, Role.EMBEDDING, f"{op} to an activation, as a position is", place)
        else:
            self._vote(weights, Role.OTHER, f"{op} to an activation", place)
        return activation(target.channels)

    def _multiply(self, inputs: list[Known], place: _Place) -> list[Known]:
        second, first = sorted(inputs, key=lambda known: known.nature)
        if second.is_weight and first.is_weight:
            return [self._multiply_weights(first, second, place)]
        if not first.passes:
            return compute(inputs)
        if second.nature < Nature.WEIGHT:
            return [first]
        if second.is_weight:
            return [self._scale(first, second, place)]
        return [self._multiply_passing(first, second)]

    def _scale(self, target: Known, weight: Known, place: _Place) -> Known:
        """Votes for what a weight is that a tensor is multiplied by; returns the product."""
        if target.nature in _NORMAL and target.scale == NO_VARIABLE and self._sizes(weight) != ():
            self._vote([weight], Role.NORM, f"{place.node.op} with what is normalized", place)
            return target._replace(scale=min(weight.of))
        self._vote([weight], Role.OTHER, f"{place.node.op} with an activation", place)
        if target.nature is not Nature.ACTIVATION or len(weight.of) > 1 or self._sizes(weight) == ():
            return activation(target.channels)
        return target._replace(alone=False, rows=False, scale=min(weight.of), factors=frozenset())

    def _multiply_weights(self, first: Known, second: Known, place: _Place) -> Known:
        """The product of two weights, of which the one of fewer dimensions is a gain of the other."""
        gain, weight = sorted((first, second), key=self._dimensions)
        if self._dimensions(gain) == self._dimensions(weight) or gain.of & weight.of:
            return compute([first, second])[0]
        self._vote([gain], Role.OTHER, f"{place.node.op} with a weight", place)
        return weight._replace(computed=True)

    def _dimensions(self, weight: Known) -> int:
        """How many dimensions the variables have at most that a weight is made of, without those of size 1."""
        shapes = (self.graph.variables[number].shape or () for number in weight.of)
        return max(len(shape) - shape.count(1) for shape in shapes)

    def _multiply_passing(self, first: Known, second: Known) -> Known:
        """The product of two tensors of the forward pass, the larger nature first."""
        natures = first.nature, second.nature
        if natures == (Nature.NORMALIZER, Nature.NORMALIZER):
            return first
        if natures == (Nature.NORMALIZER, Nature.STATISTIC):
            return first._replace(nature=Nature.NORMALIZED)
        if natures == (Nature.STATISTIC, Nature.STATISTIC) and first == second:
            return first
        if natures == (Nature.ACTIVATION, Nature.NORMALIZER):
            if first.alone and first.of == second.of:
                self._normalized |= first.of
            if first.scale not in (NO_VARIABLE, second.scale):
                self._scales_first(first.scale)
                return second._replace(nature=Nature.NORMALIZED, channels=first.channels, scale=first.scale)
            return second._replace(nature=Nature.NORMALIZED, channels=first.channels)
        if first.of and first.of == second.of:
            return first  # a square
        return activation(max(first.channels, second.channels))

    def _scales_first(self, number: int) -> None:
        """Corrects the vote for a scale that meets its tensor before that is divided by the root of its variance."""
        vote = self._votes[number][-1]
        self._votes[number][-1] = vote._replace(role=Role.NORM, seen=f"{vote.seen} that is normalized then")

    def _power(self, inputs: list[Known], place: _Place) -> list[Known]:
        """A power of two is a square; any other counts as a root where it makes sense."""
        node, path = place
        exponent = factors.number(self._nodes_of(self._body_at(path)).get(node.inputs[1].node))
        is_square = inputs[0].nature is Nature.ACTIVATION if exponent is None else exponent == _SQUARE
        return square(inputs) if is_square else root(inputs)

    # What is known of weights.

    def _note(self, weights: Iterable[Known], role: Role, place: _Place) -> None:
        for weight in weights:
            if role is Role.KERNEL and weight.of <= self._applied_to:
                continue  # the gradient of the kernel multiplies by what it was applied to
            for number in weight.of:
                if self.graph.variables[number].rank != 0:  # a number may scale a kernel, but is none
                    self._certain.setdefault((number, role), f"{place.node.op}, {place.node.name}")

    def _vote(self, weights: Iterable[Known], role: Role, seen: str, place: _Place) -> None:
        for weight in weights:
            for number in weight.of:
                self._votes.setdefault(number, []).append(_Vote(role, seen, place.path, place.node.name))

    def _shape(self, weight: Known) -> tuple[int | None, ...] | None:
        """The shape of the variable that a weight is made of; None where it is unknown, or they are several."""
        return self.graph.variables[min(weight.of)].shape if len(weight.of) == 1 else None

    def _sizes(self, weight: Known) -> tuple[int | None, ...] | None:
        """The dimensions of a weight that are not 1."""
        shape = self._shape(weight)
        return None if shape is None else tuple(size for size in shape if size != 1)

    def _last_size(self, weight: Known) -> int:
        shape = self._shape(weight)
        return -1 if not shape or shape[-1] is None or not weight.whole else shape[-1]

    def _fits_scale(self, offset: Known, target: Known) -> bool:
        """Whether a weight may be the offset of a normalization: it has the shape of the scale."""
        sizes = self._sizes(offset)
        if sizes is None:
            return True
        if target.scale != NO_VARIABLE:
            return sizes == self._sizes(weight_of(frozenset([target.scale])))
        return len(sizes) <= 1

    def _fits_layer(self, bias: Known, target: Known) -> bool:
        """Whether a weight may be the bias of the layer that makes a tensor: it has dimensions of that."""
        sizes, layer = self._sizes(bias), target.of
        if sizes is None or (target.mixed and len(sizes) > 1):
            return sizes is None and not target.mixed
        kernels = [self._sizes(weight_of(frozenset([number]))) for number in layer]
        if None in kernels:
            return len(sizes) <= 1
        known = [kernel for kernel in kernels if kernel]
        if len(sizes) <= 1 or (not bias.whole and 0 < _product(sizes[:-1]) <= _MOST_BIASES):
            return not sizes or sizes[-1] in {size for kernel in known for size in (*kernel, _product(kernel[-2:]))}
        return any(len(kernel) > len(sizes) and kernel[-len(sizes) :] == sizes for kernel in known) or any(
            _is_part_or_reshaped(sizes, self._kept.get(number, ())) for number in layer
        )

    def _has_shape_of_product(self, weight: Known, factors: frozenset[int]) -> bool:
        """Whether a weight has the shape of the product of two others, as the kernel has that LoRA adds to."""
        shapes = [self.graph.variables[number].shape or () for number in factors]
        if len(shapes) != 2 or not all(shapes):
            return False
        one, other = shapes
        return self._shape(weight) in ((*one[:-1], *other[-1:]), (*other[:-1], *one[-1:]))

    _RULES: ClassVar[Mapping[str, _Rule]] = {
        **dict.fromkeys(ops_with(Trait.LOOKUP), _look_up),
        **dict.fromkeys(READ_OPS, _read),
        **dict.fromkeys(WRITE_OPS, _write),
        **dict.fromkeys(ops_with(Trait.CONTRACTION), _contract),
        **dict.fromkeys(ops_with(Trait.DEPTHWISE), _depthwise),
        **dict.fromkeys(ops_with(Trait.NORMALIZATION), _normalize),
        **dict.fromkeys(JOINING_OPS, _concatenate),
        **dict.fromkeys(ADDITIVE_OPS | _OFFSET_OPS, _add),
        **dict.fromkeys(ops_with(Trait.PRODUCT, Trait.QUOTIENT_OR_ZERO) | QUOTIENT_OPS, _multiply),
        **dict.fromkeys(["Pow"], _power),
    }
    """The ops that may say what a weight is for."""


def _kept_sizes(node: Node, position: int, shape: Sequence[int | None]) -> Sequence[int | None]:
    """The dimensions of an operand that its product has, too, as far as an op of several operands tells."""
    if node.op == "Einsum":
        terms, result = node.proto.attr["equation"].s.decode().split("->")
        term = terms.split(",")[position]
        kept = [label in result for label in term]
    elif node.op in _BATCHED:
        transposed = node.proto.attr["adj_y" if position else "adj_x"].b
        kept = [True] * (len(shape) - 2) + ([True, False] if transposed == bool(position) else [False, True])
    else:
        return ()
    if len(kept) != len(shape):
        return ()  # the variable comes in another shape than its own
    return tuple(size for size, is_kept in zip(shape, kept, strict=True) if is_kept)


def _is_part_or_reshaped(sizes: Sequence[int | None], of: Sequence[int | None]) -> bool:
    """Whether sizes are some of others, in their order, or those of the same tensor in another shape."""
    if sizes[-1:] == of[-1:] and 0 < _product(sizes) == _product(of):
        return True
    left = iter(of)
    return all(size in left for size in sizes)


def _product(sizes: Sequence[int | None]) -> int:
    """The product of sizes; -1 where one is unknown."""
    product = 1
    for size in sizes:
        if size is None:
            return -1
        product *= size
    return product
