"""Weight-decay policies: an ordered list of rules, the first that matches a variable decides.

Reading a policy is pure: it executes nothing and imports no TensorFlow.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from graphwd.errors import PolicyError
from graphwd.policy import schema
from graphwd.policy.cuda_convnet import read_layer_parameters
from graphwd.policy.formula import L2, FormulaChoice
from graphwd.policy.mistakes import Mistakes
from graphwd.policy.schedule import ScheduleChoice
from graphwd.policy.selectors import Selectors, Subject
from graphwd.policy.yaml_source import Located, Source, from_mapping, read_yaml


class Mode(Enum):
    """Where weight decay enters."""

    DECOUPLED = "decoupled"  # the weight is multiplied by 1 - decay
    COUPLED = "coupled"  # decay * w is added to the gradient: L2


class Order(Enum):
    """When a decoupled decay multiplies the weight."""

    AFTER = "after"  # w <- (1 - decay) * U(w)
    BEFORE = "before"  # w <- U applied to (1 - decay) * w, gradient at the undecayed w


class Scale(Enum):
    """What a decoupled decay is multiplied by; with η the learning rate of the step and η_peak its largest."""

    NONE = "none"  # 1
    LR = "lr"  # η
    RELATIVE = "relative"  # η/η_peak: the schedule alone (Loshchilov and Hutter, arXiv 1711.05101)
    CORRECTED = "corrected"  # η²/η_peak (Defazio, arXiv 2506.02285)

    @property
    def power(self) -> int:
        """How often the learning rate is a factor."""
        return {"none": 0, "corrected": 2}.get(self.value, 1)

    @property
    def needs_peak(self) -> bool:
        """Whether it is relative to the largest learning rate."""
        return self in (Scale.RELATIVE, Scale.CORRECTED)


class Sparse(Enum):
    """What a sparse update decays."""

    TOUCHED = "touched"
    ALL = "all"


class Updates(Enum):
    """Which of several updates of one variable in one step carries the decay."""

    ONE = "one"  # there must be exactly one; the default, which no policy spells out
    EACH = "each"
    LAST = "last"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Semantics:
    """What "weight decay" means: one of at least five different updates.

    Attributes:
        mode: decoupled or coupled.
        order: before or after the optimizer's update; says nothing where coupled.
        scale: what the rate is multiplied by; says nothing where coupled.
    """

    mode: Mode = Mode.DECOUPLED
    order: Order = Order.AFTER
    scale: Scale = Scale.NONE


PRESETS: Mapping[str, Semantics] = {
    "decoupled": Semantics(),
    "adamw": Semantics(order=Order.BEFORE, scale=Scale.LR),
    "tfa": Semantics(order=Order.BEFORE),
    "l2": Semantics(mode=Mode.COUPLED),
    "cuda-convnet": Semantics(mode=Mode.COUPLED),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy.

    Attributes:
        selectors: what a variable must be for this rule to decide it.
        weight_decay: the rate, a finite number >= 0 without unit; 1 where it is a schedule.
        semantics: what the rate means.
        sparse: what a sparse update decays.
        learning_rate: a glob for the variable, argument or node that holds the learning rate, where ``scale: lr``
            cannot find it by itself.
        updates: which of several updates carries the decay.
        allow_double_decay: whether a variable that the step already decays may be decayed again.
        optional: whether the rule may match no variable.
        where: the place of the rule, as errors print it.
        update: a glob for the writes that are the variable's update, where that cannot be told.
        gradient: a glob for the node that makes the gradient as the optimizer gets it, where that cannot be told.
        formula: what the rate is multiplied by.
        peak_learning_rate: the largest learning rate, where the scale is relative to it; else None.
        tunable: the name of the variable that holds the rate, to be assigned while it trains; else None.
        schedule: what the rate is multiplied by from step to step; None for a constant.
        step: a glob for the variable that counts the updates; None where it is found or made.
        spelled: the fields that the rule, or the policy's defaults, spell out.
    """

    selectors: Selectors
    weight_decay: float
    semantics: Semantics = Semantics()
    sparse: Sparse = Sparse.TOUCHED
    learning_rate: str | None = None
    updates: Updates = Updates.ONE
    allow_double_decay: bool = False
    optional: bool = False
    where: str = "policy"
    update: str | None = None
    gradient: str | None = None
    formula: FormulaChoice = L2
    peak_learning_rate: float | None = None
    tunable: str | None = None
    schedule: ScheduleChoice | None = None
    step: str | None = None
    spelled: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def exempts(self) -> bool:
        """Whether what it decides is never decayed."""
        return self.weight_decay == 0 and self.tunable is None

    @property
    def rate_varies(self) -> bool:
        """Whether the rate of a decay of the weight itself may be known only as the step runs."""
        scaled = self.semantics.scale is not Scale.NONE or self.tunable is not None or self.schedule is not None
        return scaled and self.semantics.mode is Mode.DECOUPLED

    @property
    def stays_below_one(self) -> bool:
        """Whether a rate of 1 would take all of the weight, so that a larger one makes no sense."""
        return _takes_all(self.semantics, self.formula)


def _takes_all(semantics: Semantics, formula: FormulaChoice) -> bool:
    """Whether a rate of 1 takes all of the weight."""
    plain = formula == L2  # of which TensorFlow need not be asked
    unscaled = semantics.mode is Mode.DECOUPLED and semantics.scale is Scale.NONE
    return unscaled and (plain or formula.resolved().shrinks)


@dataclass(frozen=True, slots=True)
class Policy:
    """An ordered list of rules.

    Attributes:
        rules: the rules, in order.
        skip_unmatched: whether a trainable variable that no rule matches is left alone (true) or an error (false).
        where: where the policy came from, as errors print it.
        notes: what the policy's source says that has no meaning here; every plan made by the policy repeats it.
        fuse: whether XLA compiles the optimizer's arithmetic of the decayed variables together with their decay.
        leave_not_updated: whether a variable that a rule would decay, but that the step writes otherwise than from a
            gradient, is left alone (true) or an error (false).
        several_writers: whether several threads or sessions may run the step on the same variables at once. A decay
            then only subtracts, so that no update is lost that comes between its read and its write.
    """

    rules: tuple[Rule, ...]
    skip_unmatched: bool = False
    where: str = "policy"
    notes: tuple[str, ...] = ()
    fuse: bool = False
    leave_not_updated: bool = False
    several_writers: bool = False

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object]) -> Policy:
        """Validates a mapping of the same form as a policy file.

        Args:
            mapping: ``{"version": 1, "weight_decay": 0.05, "exempt": [...], "rules": [...], ...}``.

        Returns:
            The policy.

        Raises:
            PolicyError: the mapping is malformed; the message has a line for each mistake, which names the key.

        Examples:
            >>> Policy.from_dict({"version": 1, "weight_decay": 0.01}).rules[0].weight_decay
            0.01
        """
        return _policy(Source(from_mapping(mapping, "policy")), "policy")

    @classmethod
    def from_text(cls, text: str, where: str = "policy") -> Policy:
        """Validates the text of a policy file.

        Args:
            text: YAML.
            where: what messages call it.

        Returns:
            The policy.

        Raises:
            PolicyError: the text is malformed; the message names line and key.
        """
        return _policy(read_yaml(text, where), where)

    @property
    def by_use(self) -> bool:
        """Whether any rule asks what a variable is used for, which takes a walk through the step to know."""
        return any(rule.selectors.by_use for rule in self.rules)

    def decide(self, subject: Subject) -> Rule | None:
        """Finds the rule that decides a variable.

        Args:
            subject: the variable, as selectors see it.

        Returns:
            The first rule that matches, or None.
        """
        return next((rule for rule in self.rules if rule.selectors.match(subject)), None)


_MOST_BYTES = 16 * 2**20
"""The size limit of a policy file; a policy of a thousand rules has a hundredth of it."""


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads and validates a policy file.

    Args:
        path: a ``.yaml`` or ``.yml`` file, or a cuda-convnet layer-parameter file, ``.cfg``; UTF-8.

    Returns:
        The policy.

    Raises:
        PolicyError: the file cannot be read or is malformed; the message has a line for each mistake, which names file,
            line and key.
    """
    source = os.fspath(path)
    if "\n" in source:
        raise PolicyError(
            f"a text of {len(source.splitlines())} lines is no path of a policy file; write it to a .yaml file, or "
            "give what yaml.safe_load makes of it"
        )
    if not source.endswith((".yaml", ".yml", ".cfg")):
        raise PolicyError(f"{source}: not a policy file; its name must end in .yaml, .yml or .cfg")
    text = _read(source)
    if source.endswith(".cfg"):
        document, notes = read_layer_parameters(text, source)
        return _policy(Source(document), source, notes)
    return _policy(read_yaml(text, source), source)


def _read(source: str) -> str:
    """The text of a policy file."""
    try:
        mode = os.stat(source).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # which may never end, or never begin
            raise PolicyError(f"{source}: is a pipe or a device; save the policy as a file")
        with open(source, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"{source}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise PolicyError(f"{source!r}: cannot be read: {error}") from None
    if len(content) > _MOST_BYTES:
        raise PolicyError(
            f"{source}: is larger than {_MOST_BYTES // 2**20} MiB, which no policy is; name the policy file"
        )
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise PolicyError(f"{source}: not UTF-8 at byte {error.start}; save the file as UTF-8 text") from None


PolicyLike = Policy | str | os.PathLike[str] | Mapping[str, object]
"""Every form in which a policy is accepted."""


def as_policy(policy: PolicyLike) -> Policy:
    """Reads a policy from whatever form it is given in.

    Args:
        policy: a `Policy`, the path of a policy file, or a mapping.

    Returns:
        The policy.

    Raises:
        PolicyError: it is malformed, or of another type.
    """
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, Mapping):
        return Policy.from_dict(policy)
    if isinstance(policy, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may not check
        return load_policy(policy)
    first = "; a decorator takes the policy first: @with_weight_decay('policy.yaml')" if callable(policy) else ""
    raise PolicyError(f"a policy must be a Policy, a path or a mapping, got a {type(policy).__name__}{first}")


def _policy(read: Source, source: str, notes: tuple[str, ...] = ()) -> Policy:
    document, mistakes = read.document, Mistakes()
    fields = schema.fields(document, schema.POLICY_FIELDS, "a policy", mistakes)
    if "version" not in _places(document):
        mistakes.add(document.error("'version' is missing; write 'version: 1'"))
    if not mistakes and _places(document).keys().isdisjoint(("rules", "weight_decay")):
        mistakes.add(document.error("there is neither 'weight_decay' nor 'rules'; write 'weight_decay: 0.05'"))
    rules = tuple(_rules(document, fields, mistakes))
    read.tell(mistakes)
    mistakes.check()
    return Policy(
        rules,
        skip_unmatched=fields.get("unmatched", "error") == "skip",
        fuse=fields.get("fuse", "none") == "xla",
        leave_not_updated=fields.get("not_updated", "error") == "leave",
        several_writers=fields.get("writers", "one") == "several",
        where=source,
        notes=notes,
    )


def _rules(document: Located, fields: dict[str, Any], mistakes: Mistakes) -> list[Rule]:
    """The rules; of what is wrong in them, and in the defaults that they share, the mistakes."""
    defaults = _Defaults.of(document, fields, mistakes)
    rules = [_exempt(where, selectors, defaults) for where, selectors in fields.get("exempt", ())]
    first: dict[str, Rule] = {}
    for item in (*fields.get("rules", ()), *_last(document, fields)):
        with mistakes.kept():
            own = schema.all_fields(item, schema.RULE_FIELDS, "a rule")
            if defaults is not None:
                rules.append(_rule(item, own, defaults))
                _check_tunable(item, rules[-1], first)
    return rules


def _exempt(where: str, selectors: Selectors, defaults: _Defaults | None) -> Rule:
    """The rule that an entry of ``exempt`` stands for."""
    semantics = Semantics(**defaults.meaning) if defaults is not None else Semantics()  # type: ignore[arg-type]
    return Rule(selectors, 0.0, semantics, optional=True, where=where, spelled=frozenset({"weight_decay", "optional"}))


def _last(document: Located, fields: dict[str, Any]) -> Iterator[Located]:
    """The rule that a ``weight_decay`` of the policy stands for, as it would be written; none without one."""
    if "weight_decay" in fields:
        rate = _places(document)["weight_decay"]
        yield replace(rate, value={"weight_decay": rate})


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What the rules of a policy share.

    Attributes:
        fields: the fields that a rule has where it does not spell them out.
        meaning: what their ``semantics``, or ``mode``, ``order`` and ``scale``, say.
    """

    fields: dict[str, Any]
    meaning: dict[str, Enum]

    @classmethod
    def of(cls, document: Located, fields: dict[str, Any], mistakes: Mistakes) -> _Defaults | None:
        """The defaults of a policy; None where they are wrong, so that it is not known what a rule means."""
        places = _places(document)
        if "defaults" in places and "defaults" not in fields:
            return None
        given = fields.get("defaults", {})
        with mistakes.kept():
            return cls(given, _semantics({}, given, _places(places.get("defaults"))))
        return None


def _rule(item: Located, own: dict[str, Any], defaults: _Defaults) -> Rule:
    fields = defaults.fields | own
    if "weight_decay" not in fields:
        raise item.error("the rule has no 'weight_decay'; write 'weight_decay: 0' for none")
    places = _places(item)
    semantics = Semantics(**_semantics(defaults.meaning, own, places))  # type: ignore[arg-type]
    mistakes = Mistakes()
    for check in (_check_formula, _check_peak, _check_step):
        with mistakes.kept():
            check(item, fields, semantics, places)
    mistakes.check()
    rate: float | ScheduleChoice = fields["weight_decay"]
    schedule = rate if isinstance(rate, ScheduleChoice) else None
    return Rule(
        selectors=Selectors(**{key: own[key] for key in schema.SELECTOR_FIELDS if key in own}),
        weight_decay=1.0 if isinstance(rate, ScheduleChoice) else rate,
        schedule=schedule,
        step=fields.get("step"),
        semantics=semantics,
        sparse=Sparse(fields.get("sparse", "touched")),
        learning_rate=fields.get("learning_rate"),
        update=fields.get("update"),
        gradient=fields.get("gradient"),
        formula=fields.get("formula", L2),
        tunable=fields.get("tunable"),
        peak_learning_rate=fields.get("peak_learning_rate") if semantics.scale.needs_peak else None,
        updates=Updates(fields.get("updates", "one")),
        allow_double_decay=fields.get("double_decay") == "allow",
        optional=fields.get("optional", False),
        where=item.where,
        spelled=frozenset(fields),
    )


def _check_tunable(item: Located, rule: Rule, first: dict[str, Rule]) -> None:
    """Refuses a rule that shares a variable for its rate with an earlier one, but not the number it begins with."""
    if rule.tunable is not None and first.setdefault(rule.tunable, rule).weight_decay != rule.weight_decay:
        raise item.error(
            f"the rule shares 'tunable: {rule.tunable}' with {first[rule.tunable].where}, but not its weight_decay; "
            "write the same number, or another name"
        )


def _check_formula(item: Located, fields: dict[str, Any], semantics: Semantics, places: _Places) -> None:
    """Refuses a formula that means nothing with its rate or its mode."""
    given: float | ScheduleChoice = fields["weight_decay"]
    rate = given.largest if isinstance(given, ScheduleChoice) else given
    choice: FormulaChoice = fields.get("formula", L2)
    if rate >= 1 and _takes_all(semantics, choice):
        raise places.get("weight_decay", item).error(
            "weight_decay must be below 1 where it multiplies the weight by 1 - weight_decay, got "
            f"{rate:g}; write 0.01 for 1 %"
        )
    if choice != L2 and semantics.mode is Mode.COUPLED and choice.resolved().of_update:
        raise places.get("formula", item).error(
            f"the formula {choice.name} depends on what the optimizer's update subtracts, which is not known where the "
            "decay joins the gradient; write a decoupled 'semantics'"
        )


def _check_peak(item: Located, fields: dict[str, Any], semantics: Semantics, places: _Places) -> None:
    """Refuses a scale that is relative to a largest learning rate which is not given, and one that is without use."""
    scale = semantics.scale
    if scale.needs_peak and "peak_learning_rate" not in fields:
        raise places.get("scale", item).error(
            f"'scale: {scale.value}' needs the largest learning rate of training; write 'peak_learning_rate: 1e-3'"
        )
    if not scale.needs_peak and "peak_learning_rate" in places:
        raise places["peak_learning_rate"].error(
            "'peak_learning_rate' says nothing without 'scale: relative' or 'scale: corrected'; leave it out"
        )


def _check_step(item: Located, fields: dict[str, Any], semantics: Semantics, places: _Places) -> None:
    """Refuses a counter for a rate that does not count."""
    del item, semantics
    rate: float | ScheduleChoice = fields["weight_decay"]
    counts = isinstance(rate, ScheduleChoice) and rate.variable is None
    if "step" in places and not counts:
        raise places["step"].error("'step' says nothing where weight_decay is no schedule; leave it out")


_Places = Mapping[str, Located]
"""Where each key of a mapping stands."""


def _places(item: Located | None) -> _Places:
    """The places of the keys of a mapping; none where it is not one."""
    return item.value if item is not None and isinstance(item.value, Mapping) else {}


_SEMANTICS_FIELDS: Mapping[str, type[Enum]] = {"mode": Mode, "order": Order, "scale": Scale}


def _semantics(inherited: dict[str, Enum], fields: dict[str, Any], places: _Places) -> dict[str, Enum]:
    """Merges a meaning over the one inherited: a preset replaces all of it, a single field only itself."""
    spelled = {key: kind(fields[key]) for key, kind in _SEMANTICS_FIELDS.items() if key in fields}
    if "semantics" in fields:
        if spelled:
            raise places["semantics"].error(
                f"'semantics' already says {', '.join(sorted(spelled))}; give the preset or the fields, not both"
            )
        preset = PRESETS[fields["semantics"]]
        return {"mode": preset.mode, "order": preset.order, "scale": preset.scale}
    if spelled.get("mode") is Mode.COUPLED:
        inherited = {}
    meaning = inherited | spelled
    for key in ("order", "scale"):
        if meaning.get("mode") is Mode.COUPLED and key in spelled:
            raise places[key].error(f"'{key}' says nothing where mode is coupled; leave it out")
    return meaning
