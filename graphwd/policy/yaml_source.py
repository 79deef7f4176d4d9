"""Reads YAML into plain values that remember their line, so that every later error can point at it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union, cast

import yaml

from graphwd.errors import PolicyError
from graphwd.policy.mistakes import Mistakes

# The scalars of YAML 1.2 (its core schema). PyYAML implements YAML 1.1, which reads 5e-4 as text for want of a dot,
# 1:30 as 90, 010 as 8 and `no` as false.
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_OCTAL = re.compile(r"[-+]?0[0-9]+|0o[0-7]+")

_DECIMAL = "write it in decimal"

_MAX_DEPTH = 6
"""A policy is four levels deep; more is a mistake, or meant to exhaust memory."""

_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)

Scalar = Union[str, int, float, bool, None]

OBJECTS = frozenset({"variables"})
"""Keys of a mapping made in Python whose value is kept as it is."""

FUNCTIONS = frozenset({"formula", "weight_decay"})
"""Keys of a mapping made in Python whose value may be a function or a variable, which is kept as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A value that a policy made in Python holds and a file cannot."""

    value: object


@dataclass(slots=True, eq=False)
class Refused:
    """A value that no policy can hold. What reads it tells that with all else, and whoever has read the rest.

    Attributes:
        error: why.
        number: why, where a number is asked for; empty where that is no other reason.
        told: whether what reads it has told it.
    """

    error: PolicyError
    number: str = ""
    told: bool = False


@dataclass(frozen=True, slots=True)
class Located:
    """A value of a policy and the place it was read from.

    Attributes:
        value: a scalar, a tuple of `Located`, a mapping from key to `Located`, what only Python can give, or what no
            policy can hold.
        where: the place, as errors print it: ``policy.yaml:12`` or ``policy: rules[1].name``.
        line: the line in the file, from 1; 0 where the policy came from a mapping.
    """

    value: Scalar | Given | Refused | tuple[Located, ...] | Mapping[str, Located]
    where: str
    line: int = 0

    def error(self, message: str) -> PolicyError:
        """The error that says what is wrong here: of a value that was refused, why that was."""
        if isinstance(self.value, Refused):
            self.value.told = True
            return self.value.error
        return self.error_here(message)

    def no_number(self, must: str, but: str) -> PolicyError:
        """The error that says that this is no number.

        Args:
            must: what it must be.
            but: what it is, and what to write; of a value that was refused, it is said why.
        """
        if isinstance(self.value, Refused) and self.value.number:
            self.value.told = True
            return self.error_here(f"{must}, but {self.value.number}")
        return self.error(must + but)

    def error_here(self, message: str) -> PolicyError:
        """The error that says what is wrong with this place, whatever its value is."""
        located = f"{self.where}: {message}"
        return PolicyError(located, [(self.line, located)])


@dataclass(frozen=True, slots=True)
class Source:
    """A document, and what is wrong with its YAML.

    Attributes:
        document: its values; in place of one that no policy can hold there is a `Refused`.
        refused: these.
        keys: what is wrong with keys, which the document lacks.
    """

    document: Located
    refused: Sequence[Refused] = ()
    keys: Sequence[PolicyError] = ()

    def tell(self, mistakes: Mistakes) -> None:
        """Adds to the mistakes of a policy what is wrong with its YAML, but not what those tell already."""
        for error in (*self.keys, *(refused.error for refused in self.refused if not refused.told)):
            with mistakes.kept():
                raise error


def read_yaml(text: str, source: str) -> Source:
    """Parses one YAML document without constructing any object a tag might name.

    Args:
        text: the document.
        source: the name that errors put before the line.

    Returns:
        The document as `Located` values, and what is wrong with it: duplicate and non-text keys, tags, and values that
        the versions of YAML read differently.

    Raises:
        PolicyError: the text is not YAML, has more than one document, or more mistakes than anyone would read.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise PolicyError(f"{source}:1: the policy is empty; write at least 'version: 1' and 'rules:'")
        return _Converter(loader, source).document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        hint = '; put a pattern that begins with * in quotes: "*/kernel"' if "an alias" in str(error.context) else ""
        raise PolicyError(f"{source}:{line}: not YAML: {error.problem or error.context}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PolicyError(f"{source}:{line}: not YAML: {error.reason}") from None
    except RecursionError:
        raise PolicyError(f"{source}:1: nested too deeply to be a policy") from None
    finally:
        if loader is not None:
            loader.dispose()  # pyright: ignore[reportUnknownMemberType]


def from_mapping(value: object, where: str) -> Located:
    """Gives a Python mapping the same form as a parsed file.

    Args:
        value: nested mappings, sequences and scalars.
        where: the place of ``value``, as errors should print it.

    Returns:
        ``value`` as `Located` values.

    Raises:
        PolicyError: a key is not text, or a value has a type that a policy cannot hold.
    """
    return _located(value, where, ": ", 0)


def _located(value: object, where: str, separator: str, depth: int) -> Located:
    if depth > _MAX_DEPTH:
        raise PolicyError(f"{where}: nested too deeply to be a policy")
    if isinstance(value, Mapping):
        entries: dict[str, Located] = {}
        for key, item in cast("Mapping[object, object]", value).items():
            if not isinstance(key, str):
                raise PolicyError(f"{where}: keys must be text, got {key!r}")
            place = f"{where}{separator}{key if key.isprintable() else repr(key)}"
            kept = key in OBJECTS or (key in FUNCTIONS and not _is_plain(item))
            entries[key] = Located(Given(item), place) if kept else _located(item, place, ".", depth + 1)
        return Located(entries, where)
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return Located(tuple(_located(item, f"{where}[{i}]", ".", depth + 1) for i, item in enumerate(items)), where)
    if value is None or isinstance(value, (str, bool, int, float)):
        return Located(value, where)
    raise PolicyError(f"{where}: a policy cannot hold a {type(value).__name__}; use text, numbers, lists and mappings")


def _is_plain(value: object) -> bool:
    """Whether a file could hold a value."""
    return value is None or isinstance(value, (str, bool, int, float, list, tuple, Mapping))


class _TwoReadingsError(ValueError):
    """A scalar that the versions of YAML read differently, so that nobody can tell what was meant.

    Attributes:
        reading: the two.
        advice: what to write.
        for_number: likewise where it must be a number.
    """

    def __init__(self, reading: str, advice: str, for_number: str) -> None:
        super().__init__(reading)
        self.reading, self.advice, self.for_number = reading, advice, for_number


class _Converter:
    """Turns PyYAML's node tree into `Located` values; each node once, however many aliases name it."""

    def __init__(self, loader: yaml.SafeLoader, source: str) -> None:
        self._loader = loader
        self._source = source
        self._mistakes = Mistakes()  # to stop where there are too many
        self._refused: list[Refused] = []
        self._keys: list[PolicyError] = []
        self._done: dict[int, Located] = {}
        self._open: set[int] = set()

    def document(self, root: yaml.Node) -> Source:
        """The whole document.

        Raises:
            PolicyError: there are more mistakes than anyone would read.
        """
        return Source(self._convert(root), self._refused, self._keys)

    def _convert(self, node: yaml.Node) -> Located:
        at = Located(None, f"{self._source}:{_line(node)}", _line(node))
        if id(node) in self._open:
            return self._refuse(at, "this alias contains itself; write the values out")
        if node.tag not in _PLAIN_TAGS:
            return self._refuse(at, f"the tag '{node.tag}' is not allowed; a policy holds plain values only")
        if id(node) not in self._done:
            self._open.add(id(node))
            try:
                self._done[id(node)] = self._value(node, at)
            finally:
                self._open.remove(id(node))
        return self._done[id(node)]

    def _value(self, node: yaml.Node, at: Located) -> Located:
        if isinstance(node, yaml.MappingNode):
            return replace(at, value=self._mapping(node))
        if isinstance(node, yaml.SequenceNode):
            return replace(at, value=tuple(map(self._convert, node.value)))
        assert isinstance(node, yaml.ScalarNode)
        text = _shorten(node.value)
        try:
            return replace(at, value=_scalar(self._loader, node))
        except _TwoReadingsError as error:
            message = f"{text} is {error.reading}; {error.advice}, or put it in quotes if it is text"
            return self._refuse(at, message, f"{text} is {error.reading}; {error.for_number}")
        except ValueError:  # a wrong explicit tag, or more digits than Python reads
            return self._refuse(at, f"{text!r} is not of type {node.tag.rpartition(':')[2]}")

    def _refuse(self, at: Located, message: str, number: str = "") -> Located:
        """In place of a value that no policy can hold, why that is so.

        Raises:
            PolicyError: there are more mistakes than anyone would read.
        """
        error = at.error(message)
        with self._mistakes.kept():
            raise error
        self._refused.append(Refused(error, number))
        return replace(at, value=self._refused[-1])

    def _mapping(self, node: yaml.MappingNode) -> Mapping[str, Located]:
        entries: dict[str, Located] = {}
        first_line: dict[str, int] = {}
        for key, value in node.value:
            try:
                name = self._key(key, first_line)
            except PolicyError as error:
                self._keys.append(error)
                with self._mistakes.kept():
                    raise
                continue
            # A value is reported where its key stands: that is the line a person looks for.
            entries[name] = replace(self._convert(value), where=f"{self._source}:{_line(key)}", line=_line(key))
        return entries

    def _key(self, node: yaml.Node, first_line: dict[str, int]) -> str:
        at = Located(None, f"{self._source}:{_line(node)}", _line(node))
        if not isinstance(node, yaml.ScalarNode):
            raise at.error("keys must be text; quote the key if it is meant literally")
        key = str(node.value)
        if key in first_line:
            raise at.error(f"duplicate key {key!r}, first given on line {first_line[key]}; keep one")
        first_line[key] = at.line
        return key


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Scalar:
    """The value of a scalar.

    Raises:
        ValueError: it is not of the type of its tag; _TwoReadingsError: YAML 1.1 and 1.2 read it differently.
    """
    text, kind = str(node.value), node.tag.rpartition(":")[2]
    if node.style is None and _implicit_tag(loader, text) == node.tag:
        return _plain(text, kind)
    if kind == "null":
        return None
    patterns = {"bool": _BOOL, "int": _INT, "float": _FLOAT}
    if kind not in patterns:
        return text
    if not patterns[kind].fullmatch(text) or _OCTAL.fullmatch(text):
        raise ValueError(text)
    return text.lower() == "true" if kind == "bool" else _number(text, kind)


def _plain(text: str, kind: str) -> Scalar:
    """A scalar without quotes or tag, given its type in YAML 1.1."""
    if _OCTAL.fullmatch(text):
        raise _TwoReadingsError("an octal number to some readers of YAML, not to others", _DECIMAL, _DECIMAL)
    if _FLOAT.fullmatch(text) or _INT.fullmatch(text):
        return _number(text, "int" if _INT.fullmatch(text) else "float")
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if kind in ("int", "float"):  # with colons, to the base of 60; with underscores; 0b101
        raise _TwoReadingsError("a number to YAML 1.1 and text to YAML 1.2", _DECIMAL, _DECIMAL)
    if kind == "bool":
        raise _TwoReadingsError(
            "true or false to YAML 1.1 and text to YAML 1.2", "write true or false", "write a number in digits"
        )
    # What YAML 1.1 takes for dates stays the text it was: a policy has none.
    return None if kind == "null" else text


def _number(text: str, kind: str) -> int | float:
    if kind == "int":
        return int(text, 16) if text.startswith("0x") else int(text)
    return float(text.replace(".", "") if text.lower().lstrip("+-") in (".inf", ".nan") else text)


def _implicit_tag(loader: yaml.SafeLoader, text: str) -> str:
    untyped: Any = loader
    return str(untyped.resolve(yaml.ScalarNode, text, (True, False)))


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
