"""Reads a cuda-convnet layer-parameter file as the policy that it is.

cuda-convnet (Krizhevsky, 2011) and cuda-convnet2 (2014) read such a file with ConfigParser: a section a layer, ``wc``
its weight decay. What a layer's weights do with it (``Weights::update``) is, with g the step down the gradient::

    inc <- momW * inc + epsW * g - epsW * wc * w
    w   <- w + inc

Biases are constructed with a ``wc`` of 0, and a layer without ``wc`` has one of 0. This module gives the rules that say
so in the form of a YAML policy, each with its line, so that they are validated as any other.
"""

from __future__ import annotations

import configparser
import math
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import cast

from graphwd.errors import PolicyError
from graphwd.policy.yaml_source import Located, Scalar

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
# ConfigParser reads an indented line as more of the value above: a rate would vanish in an epsW.
_INDENTED = re.compile(r"^[^\S\n]+[^\s#;]", re.MULTILINE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_WEIGHTS = frozenset({"wc", "epsw", "epsb", "momw", "momb"})
"""What only a layer with weights has."""

_OPTIMIZER = frozenset({"epsw", "epsb", "momw", "momb"})
_DEFINITION = frozenset({"type", "inputs"})
"""What every layer has in a layer-definition file, and none in a layer-parameter file."""

_BIAS = "(.*/)?(bias|biases|b)$"


class _Key(str):
    """A key as ConfigParser compares it, in lower case, with its spelling and its line in the file."""

    spelling: str
    line: int

    def __new__(cls, spelling: str, line: int) -> _Key:
        key = super().__new__(cls, spelling.lower())
        key.spelling, key.line = spelling, line
        return key


class _Lookups(Mapping[str, str]):
    """The values that one value may refer to, as often as any policy needs: nested, they could exhaust memory."""

    _MOST = 100

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._count = 0

    def __getitem__(self, key: str) -> str:
        self._count += 1
        if self._count > self._MOST:
            raise configparser.InterpolationError("", key, f"more than {self._MOST} references")
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Interpolation(configparser.BasicInterpolation):
    def before_get(
        self,
        parser: MutableMapping[str, Mapping[str, str]],
        section: str,
        option: str,
        value: str,
        defaults: Mapping[str, str],
    ) -> str:
        return super().before_get(parser, section, option, value, _Lookups(defaults))


class _Parser(configparser.ConfigParser):
    """ConfigParser as cuda-convnet's Python 2 had it, but strict, and with keys that know their line."""

    def __init__(self, text: str) -> None:
        super().__init__(inline_comment_prefixes=(";",), interpolation=_Interpolation(), strict=True)
        self._number = 0
        self.read_file(self._numbered(text))

    def _numbered(self, text: str) -> Iterator[str]:
        for self._number, line in enumerate(text.split("\n"), start=1):
            yield line

    def optionxform(self, optionstr: str) -> str:
        # Called for a key before the next line is asked for.
        return _Key(optionstr, self._number)

    def own_keys(self, section: str) -> list[_Key]:
        """The keys that stand in the section itself; of ``DEFAULT`` too."""
        defaults = cast("list[_Key]", list(self.defaults()))
        if section == self.default_section:
            return defaults
        inherited = {key.line for key in defaults}
        return [key for key in cast("list[_Key]", self.options(section)) if key.line not in inherited]


def read_layer_parameters(text: str, source: str) -> tuple[Located, tuple[str, ...]]:
    """Reads a layer-parameter file of cuda-convnet or cuda-convnet2.

    Args:
        text: the file.
        source: the name that errors put before the line.

    Returns:
        The policy, in the form of a policy document, and a note on every key that says nothing in a policy.

    Raises:
        PolicyError: the file is malformed, a ``wc`` is not a rate >= 0 or differs between the inputs of a layer, or no
            layer has a ``wc``, as in a layer-definition file.
    """
    parser = _parse(text, source)
    own = {section: parser.own_keys(section) for section in (parser.default_section, *parser.sections())}
    rules: list[Located] = []
    for layer in parser.sections():
        wc = next((key for key in cast("list[_Key]", parser.options(layer)) if key == "wc"), None)
        if wc is not None:
            rate = _rate(parser, layer, f"{source}:{wc.line}")
            # A wc from [DEFAULT] is every section's; only what else a section says shows that it has weights.
            certain = not _WEIGHTS.isdisjoint(own[layer])
            rules += _rules(layer, rate, rate == 0 or not certain, f"{source}:{wc.line}", wc.line)
    if not rules:
        raise _no_rules(own, source)
    rules.append(_located(source, 0, weight_decay=0))
    fields: Mapping[str, Located] = {
        "version": Located(1, source),
        "defaults": _located(source, 0, semantics="cuda-convnet"),
        "rules": Located(tuple(rules), source),
    }
    return Located(fields, source), tuple(_notes(parser, own, source))


def _parse(text: str, source: str) -> _Parser:
    if text.startswith("\ufeff"):
        raise PolicyError(f"{source}:1: the file begins with a byte order mark; save it as UTF-8 without one")
    if control := _CONTROL.search(text):
        raise PolicyError(f"{source}:{_line(control)}: not text: it holds the control character {control[0]!r}")
    if indented := _INDENTED.search(text):
        raise PolicyError(
            f"{source}:{_line(indented)}: the line is indented; begin each layer and key in the first column"
        )
    try:
        parser = _Parser(text)
    except configparser.DuplicateSectionError as error:
        raise PolicyError(f"{source}:{error.lineno}: duplicate section [{error.section}]; keep one") from None
    except configparser.DuplicateOptionError as error:
        raise PolicyError(
            f"{source}:{error.lineno}: duplicate key '{error.option}' in [{error.section}]; keep one"
        ) from None
    except configparser.MissingSectionHeaderError as error:
        raise PolicyError(
            f"{source}:{error.lineno}: the line is in no section; begin with a layer, as '[conv1]'"
        ) from None
    except configparser.ParsingError as error:
        line = error.errors[0][0]
        content = text.split("\n")[line - 1].strip()
        raise PolicyError(f"{source}:{line}: neither '[layer]' nor 'key=value': {_shorten(content)!r}") from None
    if not parser.sections():
        raise PolicyError(f"{source}:1: the file has no section; write '[conv1]', the layer, and 'wc=0.0005' under it")
    return parser


def _line(match: re.Match[str]) -> int:
    return match.string.count("\n", 0, match.start()) + 1


def _rate(parser: _Parser, layer: str, where: str) -> float:
    try:
        value = parser.get(layer, "wc")
    except configparser.InterpolationError as error:
        raise PolicyError(f"{where}: wc of [{layer}] cannot be interpolated: {error.message}") from None
    rates = {_number(part.strip(), layer, where) for part in value.split(",")}
    if len(rates) > 1:
        raise PolicyError(
            f"{where}: wc of [{layer}] differs between the layer's inputs ({_shorten(value)}), whose weights cannot be "
            "told apart by name; write a YAML policy (see graphwd help policy)"
        )
    return rates.pop()


def _number(text: str, layer: str, where: str) -> float:
    rate = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0 <= rate < math.inf:
        shown = repr(_shorten(text)) if text else "nothing"
        raise PolicyError(
            f"{where}: wc of [{layer}] must be a finite number >= 0, got {shown}; write wc=0 for no decay"
        )
    return rate


def _rules(layer: str, rate: float, optional: bool, where: str, line: int) -> Iterator[Located]:
    scope = f"(^|/){re.escape(layer)}"
    if rate > 0:
        yield _located(where, line, regex=f"{scope}/{_BIAS}", weight_decay=0, optional=True)
        # Not those again that the rule before has decided: it would be reported as shadowed.
        yield _located(where, line, regex=f"{scope}(/(?!{_BIAS})|$)", rank="<=1", weight_decay=0, optional=True)
    yield _located(where, line, regex=f"{scope}(/|$)", weight_decay=rate, optional=optional)


def _located(where: str, line: int, **fields: Scalar) -> Located:
    return Located({key: Located(value, where, line) for key, value in fields.items()}, where, line)


def _no_rules(own: Mapping[str, Iterable[_Key]], source: str) -> PolicyError:
    for keys in own.values():
        for key in keys:
            if key in _DEFINITION:
                return PolicyError(
                    f"{source}:{key.line}: '{key.spelling}' defines a layer, and no layer has a 'wc': this is the "
                    "layer definition file; give the layer parameter file"
                )
    return PolicyError(f"{source}: no layer has a 'wc'; write 'wc=0' under a layer for no decay")


def _notes(parser: _Parser, own: Mapping[str, Iterable[_Key]], source: str) -> Iterator[str]:
    silent = {name for name in parser.sections() if _WEIGHTS.isdisjoint(own[name])}
    decayed = {name for name in parser.sections() if parser.has_option(name, "wc")}
    if without := [name for name in parser.sections() if name not in silent | decayed]:
        yield f"{source}: no 'wc' in {_listed(without)}: not decayed"
    if inherited := [name for name in parser.sections() if name in silent & decayed]:
        yield f"{source}: 'wc' of [DEFAULT] for {_listed(inherited)}: may match nothing, as no key there is of weights"
    sections: dict[_Key, list[str]] = {}
    for section, keys in own.items():
        for key in keys:
            if key != "wc":
                sections.setdefault(key, []).append(section)
    together: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for key, names in sections.items():
        together.setdefault((tuple(names), key in _OPTIMIZER), []).append(f"'{key.spelling}'")
    for (names, optimizer), spellings in together.items():
        why = "learning rate and momentum are the optimizer's" if optimizer else "graphwd sets only weight decay"
        yield f"{source}: ignored in {_listed(names)}: {', '.join(spellings)}: {why}"


def _listed(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
