# pyright: basic
"""Runs one trace of a step and its rewritten form from the same states, and compares them.

The original is run as a whole. A decoupled decay is a formula of the weight before and after that run. Variables that
no decay can reach (`notice`) must be as the original leaves them. Both checks take nothing from the plan but the
learning rate, where the rule is scaled by it, and that is tested (`rate_probe`). For everything else the original is
run in pieces, with the decays of the plan between them (`reference`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from graphwd.analysis.roles import Purposes
from graphwd.analysis.updates import VariableWrites
from graphwd.checking.account import Account, is_decoupled
from graphwd.checking.averages import find_averages
from graphwd.checking.measure import ulps
from graphwd.checking.notice import Notice, Writing
from graphwd.checking.own_values import OwnValues
from graphwd.checking.races import races
from graphwd.checking.rate_probe import Rates
from graphwd.checking.reference import Reference, values_of
from graphwd.checking.verification import RateCheck, Verification
from graphwd.errors import VerifyError
from graphwd.graph.graph import Variable, all_shown
from graphwd.planning.injections import Own, OwnKind, own_rate
from graphwd.planning.plan import Outcome
from graphwd.planning.planner import subject
from graphwd.policy.rules import Order, Policy, Rule, Sparse
from graphwd.steps.pipeline import concrete, plan
from graphwd.steps.read import ConcreteFunction, read, variables_of

Array = np.ndarray

_ROUNDING = 1024
"""Units in the last place that a sum of a few numbers may lose by cancellation; random numbers differ by millions."""


_FAR = (10, 100, 1000, 10**4, 10**5, 10**6)
"""Numbers of updates at which schedules are compared, besides those at which they are known to turn."""

_NOTHING = 2.0**-20
"""A share that counts as zero."""


class Settings(NamedTuple):
    """How steps are verified.

    Attributes:
        runs: how many steps are run.
        tolerance: the largest error allowed, in units in the last place.
        seed: the seed of generated arguments.
    """

    runs: int
    tolerance: float
    seed: int


class Call(NamedTuple):
    """The arguments of one run, as the step takes them and as its tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    flat: list[tf.Tensor]


class SideBySide:
    """One trace of a step beside its rewritten form."""

    def __init__(
        self,
        step: ConcreteFunction,
        rewritten: Callable[..., Any],
        policy: Policy,
        arguments: Callable[[np.random.Generator], Call],
        variables: Sequence[tf.Variable] | None,
        settings: Settings,
    ) -> None:
        """Finds out what is known of each variable without the plan.

        Args:
            step: the trace.
            rewritten: its rewritten form.
            policy: the policy.
            arguments: makes the arguments of a run.
            variables: the variables of ``rewritten`` in the order of the captures of ``step``, where they differ.
            settings: how it is verified.

        Raises:
            PlanError: the policy does not fit the step.
            VerifyError: the variables do not fit together.
        """
        self._step, self._rewritten, self._arguments, self._settings = step, rewritten, arguments, settings
        self._decided = plan(step, policy)
        self._decided.check()
        self._graph = read(step)
        self._mine = variables_of(step)
        theirs = list(self._mine if variables is None else variables)[: len(self._mine)]
        if len(self._mine) != len(theirs):
            raise VerifyError(f"the original has {len(self._mine)} variables, the rewritten step {len(theirs)}")
        self._random = np.random.default_rng(settings.seed)
        self._first = arguments(self._random)
        by_handle = {id(variable.handle): place for place, variable in enumerate(self._mine)}
        given = {
            id(leaf.handle): leaf
            for leaf in tf.nest.flatten((self._first.args, self._first.kwargs))
            if isinstance(leaf, tf.Variable)
        }
        for handle, variable in given.items():
            if handle not in by_handle:
                by_handle[handle] = len(self._mine)
                self._mine.append(variable)
                theirs.append(variable)
        self._theirs = theirs
        names = [argument.name for argument in step.function_def.signature.input_arg]
        captured: Any = step.captured_inputs
        handles = zip(names, (*self._first.flat, *captured), strict=True)
        self._places = {
            self._graph.handles[name].id: by_handle[id(tensor)]
            for name, tensor in handles
            if name in self._graph.handles and id(tensor) in by_handle
        }
        self._own = OwnValues(rewritten, self._mine, self._places)
        self._counters: dict[int, set[int]] = {}  # by variable, those that its schedules go by; -1 for graphwd's own
        for injection in self._decided.injections:
            counters = {rate.variable for rate in injection.schedules}
            self._counters.setdefault(injection.variable.id, set()).update(counters)
        self._accounts = self._open(policy)
        scaled = {
            account.variable.id: account.rule
            for account in self._accounts
            if account.scaled and account.variable and account.rule
        }
        injections = [injection for injection in self._decided.injections if injection.variable.id in scaled]
        # The plan's rate includes a learning rate that is a constant.
        constant = {injection.variable.id for injection in injections if injection.rate.is_constant}
        numbers = {
            (injection.variable.id, injection.rate.number)
            for injection in injections
            if injection.variable.id in constant
        }
        several = {i for i, rate in numbers if any(i == j and rate != other for j, other in numbers)}
        self._numbers = {i: _learning_rate(scaled[i], rate) for i, rate in numbers if i not in several}
        self._rates = Rates(step, self._graph, injections, self._numbers)
        self._outputs: list[Account | None] = []
        self._compared = 0
        self._replayed: Reference | None = None

    def _open(self, policy: Policy) -> list[Account]:
        """An account for each variable."""
        rules = self._rules(policy)
        planned = {injection.variable.id for injection in self._decided.injections}
        left = policy.leave_not_updated
        skipped = {
            decision.variable.id
            for decision in self._decided.decisions
            if left and decision.outcome is Outcome.NO_UPDATE
        }
        decayed = [
            variable for variable in self._graph.variables if variable.id in rules and variable.id not in skipped
        ]
        self._notice = notice = Notice(self._graph, decayed)
        # A decay before the update, in the gradient or in the weight, is seen by the arithmetic of the update.
        self._early = any(_is_early(rules[variable.id], notice.writing(variable)) for variable in decayed)
        accounts = [Account(variable.name.removesuffix(":0")) for variable in self._mine]
        texts = all_shown(self._graph.variables)
        for variable in self._graph.variables:
            if variable.id not in self._places:
                continue
            account = accounts[self._places[variable.id]]
            account.variable, account.left = variable, variable.id in skipped
            account.name, account.label = variable.name, texts[variable.id]
            writing = notice.writing(variable)
            reached = self._early or notice.affects(variable)
            if variable in decayed and writing is not None:
                account.rule, account.finite = rules[variable.id], False
                account.missing = variable.id not in planned
                account.certain = not reached and _says(account.rule, writing)
                account.reason = self._other_rows(variable, account.rule, writing)
            else:
                account.certain = not reached and not account.left
                if variable.id in planned:
                    account.reason = "no rule decays it, but the plan does"
        return accounts

    def _other_rows(self, variable: Variable, rule: Rule, writing: Writing) -> str:
        """What is wrong with the rows that the plan decays; empty where nothing is."""
        if not writing.once or not is_decoupled(rule):
            return ""
        asked = writing.rows and rule.sparse is Sparse.TOUCHED
        planned = {injection.rows for injection in self._decided.injections if injection.variable.id == variable.id}
        return "" if planned <= {asked} else "the plan decays other rows of it than its rule says"

    def _rules(self, policy: Policy) -> dict[int, Rule]:
        """The rules that ask for a decay, by the number of the variable, regardless of the plan."""
        known = {decision.variable.id: decision.writes for decision in self._decided.decisions}
        purposes = Purposes(self._graph if policy.by_use else None)
        rules: dict[int, Rule] = {}
        for variable in self._graph.variables:
            if variable.trainable:
                writes = known.get(variable.id) or VariableWrites(variable, (), (), (), frozenset())
                rule = policy.decide(subject(writes, purposes))
                if rule is not None and not rule.exempts:
                    rules[variable.id] = rule
        return rules

    def run(self, function: str = "", advance: Callable[[float], None] = lambda _: None) -> Verification:
        """Runs both and compares them; the variables are left as they were.

        Args:
            function: the name of the trace in the report, where there are several.
            advance: is told of each run, when it is done.

        Returns:
            The findings.

        Raises:
            VerifyError: the step cannot be verified: it is random, it fails, or a decay lies in the function of a
                dataset.
        """
        start, theirs = _values(self._mine), _values(self._theirs)
        counter = self._own.counter
        steps = 0 if counter is None else int(counter.numpy())
        try:
            with np.errstate(invalid="ignore", over="ignore"):  # what a step makes infinite is compared like the rest
                racing = self._run(advance)
        finally:
            self._own.begin(steps)
            _assign(self._mine, start)
            _assign(self._theirs, theirs)
        tolerance = self._settings.tolerance
        variables = tuple(account.checked(tolerance, function) for account in self._accounts)
        outputs = tuple(account.checked(tolerance, function) for account in self._outputs if account is not None)
        return Verification(variables, racing, self._settings.runs, outputs)

    def _run(self, advance: Callable[[float], None]) -> tuple[str, ...]:
        state = _values(self._mine)
        racing: tuple[str, ...] = ()
        moving: tuple[list[Array], Call] | None = None
        for number in range(self._settings.runs):
            call = self._arguments(self._random) if number else self._first
            plain, outputs = self._after(self._mine, state, self._original(call))
            if number == 0:
                again, outputs_again = self._after(self._mine, state, self._original(call))
                _refuse_random(self._step, plain, again)
                self._open_outputs(outputs, outputs_again)
                # The first run of a traced function may round otherwise than later ones.
                plain, outputs = again, outputs_again
                rewritten = concrete(self._rewritten, *call.args, **call.kwargs)
                racing = tuple(races(read(rewritten)))
            self._compare(_Run(call, state, plain, outputs))
            if moving is None or number == 1 or self._moves(state, plain):
                moving = state, call
            state = plain
            advance(1)
        if moving is not None:
            self._compare_at_other_rates(*moving)
            self._compare_at_other_steps(*moving)
            self._probe(*moving)
        self._find_averages(state, self._first)
        return racing

    def _compare_at_other_rates(self, state: Sequence[Array], call: Call) -> None:
        """Compares both steps with other learning rates: a decay must use the actual rates, or none.

        Those that the plan knows are doubled. If it knows none, each number that the step only reads is halved, for it
        may be one.
        """
        other = self._rates.doubled(state, self._places) if self._rates else None
        if other is not None:
            self._compare(_Run(call, other, *self._after(self._mine, other, self._original(call))))
            return
        after, _ = self._after(self._mine, state, self._original(call))
        numbers = [
            place
            for place, (variable, value) in enumerate(zip(self._mine, state, strict=True))
            if not variable.trainable and variable.dtype.is_floating and not value.shape and value == after[place] != 0
        ]
        if not numbers:
            return
        other = list(state)
        for place in numbers:
            other[place] = (state[place] / 2).astype(state[place].dtype)
        try:
            plain, outputs = self._after(self._mine, other, self._original(call))
        except VerifyError:
            return  # the step does not run with half of what it reads
        if all(np.isfinite(one).all() or not np.isfinite(two).all() for one, two in self._floats(plain, after)):
            self._compare(_Run(call, other, plain, outputs))

    def _floats(self, *states: Sequence[Array]) -> Iterable[tuple[Array, ...]]:
        """The values that each variable of floating-point numbers has in some states."""
        for variable, *values in zip(self._mine, *states, strict=True):
            if variable.dtype.is_floating:
                yield tuple(values)

    def _compare_at_other_steps(self, state: Sequence[Array], call: Call) -> None:
        """Compares both steps where schedules turn, and far from where the training stands."""
        places = {self._places[number] for counters in self._counters.values() for number in counters if number >= 0}
        for steps in self._turns(places):
            at = [np.asarray(steps, value.dtype) if place in places else value for place, value in enumerate(state)]
            try:
                plain, outputs = self._after(self._mine, at, self._original(call))
            except VerifyError:
                continue  # the step itself goes no further than that
            self._compare(_Run(call, at, plain, outputs), steps)

    def _turns(self, places: Iterable[int]) -> Iterable[int]:
        """The numbers of updates at which schedules are compared; those that the counters can hold."""
        most = min((int(self._mine[place].dtype.max) for place in places), default=2**53)
        choices = {rule.schedule for rule in self._rules_in_use() if rule.schedule and not rule.schedule.identity}
        turns = {turn for choice in choices for turn in choice.resolved().turns}
        turns |= set(_FAR) if choices else set[int]()
        return sorted(turn for turn in turns if turn < most)

    def _rules_in_use(self) -> Iterable[Rule]:
        """The rules that decay a variable."""
        return (account.rule for account in self._accounts if account.rule is not None)

    def _find_averages(self, state: Sequence[Array], call: Call) -> None:
        """Finds decayed variables that are averages of others, except where a rule names the update."""
        asked = [
            place
            for place, account in enumerate(self._accounts)
            if account.rule is not None and account.rule.update is None and not account.missing
        ]
        shapes = [value.shape for value in state]
        if not any(shapes.count(shapes[place]) > 1 for place in asked):
            return
        runs: list[tuple[Sequence[Array], Sequence[Array]]] = []
        for _ in range(2):
            moved = [
                self._moved(value) if variable.trainable and variable.dtype.is_floating else value
                for variable, value in zip(self._mine, state, strict=True)
            ]
            try:
                runs.append((moved, self._after(self._mine, moved, self._original(call))[0]))
            except VerifyError:
                return  # the step fails with such values
        for place, average in find_averages(runs, asked).items():
            if average.keeps < _NOTHING and not self._is_copy(place, average.of, runs, call):
                continue
            kept = f"{average.keeps:.4g} of itself and the rest of" if average.keeps >= _NOTHING else "a copy of"
            self._accounts[
                place
            ].reason = f"it is decayed, but what the step makes of it is {kept} '{self._accounts[average.of].shown}'"

    def _is_copy(
        self, place: int, of: int, runs: Sequence[tuple[Sequence[Array], Sequence[Array]]], call: Call
    ) -> bool:
        """Whether a variable is the copy of another: the other's new value does not depend on it."""
        (state, after), (other, _) = runs[0], runs[1]
        moved = [other[place] if position == place else value for position, value in enumerate(state)]
        now, _ = self._after(self._mine, moved, self._original(call))
        return ulps(after[of], now[of], state[of], whole=True) <= _ROUNDING

    def _moved(self, value: Array) -> Array:
        """A weight, changed a little at random."""
        noise = self._random.normal(size=value.shape)
        wide = value.astype(np.float64)
        return np.asarray(wide * (1 + noise / 8) + noise / 64).astype(value.dtype)

    def _original(self, call: Call) -> Callable[[], Any]:
        return lambda: _leaves(self._step(*call.args, **call.kwargs))

    def _moves(self, before: Sequence[Array], after: Sequence[Array]) -> bool:
        """Whether a run updates all variables whose decay is scaled by a learning rate."""
        places = [place for place, account in enumerate(self._accounts) if account.scaled]
        return all(before[place].tobytes() != after[place].tobytes() for place in places)

    def _open_outputs(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        """An account for each output of the step; None for one that differs from run to run."""
        results = len(self._graph.root.results)
        for position, (one, other) in enumerate(zip(first, second, strict=True)):
            if one is None or ulps(one, other, one, whole=True) > _ROUNDING:
                self._outputs.append(None)
                continue
            reached = self._early or len(first) != results or self._notice.affects_result(position)
            self._outputs.append(Account(f"output {position}", certain=not reached))

    def _compare(self, run: _Run, steps: int | None = None) -> None:
        """Compares one run of the rewritten step with the original.

        Args:
            run: the run of the original.
            steps: the number of updates before it, where graphwd counts them; None for the next number.
        """
        run.steps = self._compared if steps is None else steps  # so that a schedule is seen at several steps
        self._compared += steps is None
        self._own.begin(run.steps)
        actual, outputs = self._after(
            self._theirs, run.state, lambda: _leaves(self._rewritten(*run.call.args, **run.call.kwargs)), "rewritten"
        )
        run.rates.update(self._numbers)
        if self._rates:
            self._after(self._mine, run.state, lambda: run.rates.update(self._rates.run(run.call.flat)))
        for place, account in enumerate(self._accounts):
            before, plain, now = run.state[place], run.plain[place], actual[place]
            if account.rule is not None:
                self._compare_decayed(account, run, place, now)
                self._check_counter(account, run, place)
            else:
                self._compare_other(account, before, plain, now, lambda place=place: self._replay(run)[0][place])
        if len(outputs) != len(self._outputs):
            raise VerifyError(
                f"the original step returns {len(self._outputs)} tensors, the rewritten one {len(outputs)}"
            )
        for position, account in enumerate(self._outputs):
            if account is not None:
                plain, now = run.outputs[position], outputs[position]
                replay = lambda position=position: self._replay(run)[1][position]  # noqa: E731
                self._compare_other(account, plain, plain, now, replay)

    def _check_counter(self, account: Account, run: _Run, place: int) -> None:
        """Checks that what a schedule goes by counts the update of its variable, once."""
        assert account.variable is not None
        for number in self._counters.get(account.variable.id, ()):
            if number < 0:
                name, difference = "the counter of graphwd's own", self._own.counted
            else:
                counter = self._places[number]
                name = f"'{self._accounts[counter].shown}'"
                difference = int(run.plain[counter]) - int(run.state[counter])
            if account.certain and run.state[place].tobytes() != run.plain[place].tobytes() and difference != 1:
                account.reason = f"its schedule goes by {name}, which its update does not count up by one"

    def _compare_decayed(self, account: Account, run: _Run, place: int, now: Array) -> None:
        before, plain = run.state[place], run.plain[place]
        changed = before.tobytes() != plain.tobytes()
        account.finite |= not plain.size or bool(np.isfinite(plain).any())
        expected, known = self._formula(account, run, place)
        if account.missing and changed and not (account.certain and not account.scaled):
            account.error = float("inf")
            return
        if account.certain:
            if not known.all():
                expected = np.where(known, expected, self._replay(run)[0][place])
        else:
            account.fits &= ulps(_where(known, expected, now), now, before) <= self._settings.tolerance
            expected = self._replay(run)[0][place]
        account.seen |= bool(known.any())
        account.error = max(account.error, ulps(expected, now, before))
        account.decay = max(account.decay, ulps(expected, plain, before))

    def _formula(self, account: Account, run: _Run, place: int) -> tuple[Array, Array]:
        """The value of a decayed weight according to the whole step, and for which elements it is known."""
        rule, variable = account.rule, account.variable
        assert rule is not None
        assert variable is not None
        before, plain = run.state[place], run.plain[place]
        nothing = np.zeros(plain.shape, bool)
        if not is_decoupled(rule):
            return plain, nothing
        rate = self._unscaled(variable, rule, run.state)
        if rate is None:
            return plain, nothing
        if account.scaled:
            if variable.id not in run.rates:
                return plain, nothing
            rate *= run.rates[variable.id] ** rule.semantics.scale.power / (rule.peak_learning_rate or 1.0)
        formula = rule.formula.resolved()
        first = {"initial": self._initial(variable)} if "initial" in formula.takes else {}
        lost = values_of(
            formula,
            **first,
            weight=plain if rule.semantics.order is Order.AFTER else before,
            before=before,
            update=before.astype(np.float64) - plain.astype(np.float64),
        )
        full = plain.astype(np.float64) - rate * lost
        changed = ~((plain == before) | ((plain != plain) & (before != before)))
        writing = self._notice.writing(variable)
        assert writing is not None
        if writing.rows and rule.sparse is Sparse.TOUCHED and plain.ndim:
            known = nothing | changed.reshape(len(plain), -1).any(axis=1).reshape(-1, *[1] * (plain.ndim - 1))
        else:
            known = np.full(plain.shape, bool(changed.any()) or writing.always)
        return full.astype(plain.dtype), known

    def _unscaled(self, variable: Variable, rule: Rule, state: Sequence[Array]) -> float | None:
        """The rate of a rule at a run, before the learning rate is counted in; None where it is not known.

        Args:
            variable: the variable.
            rule: its rule.
            state: the variables before the run.
        """
        rate = rule.weight_decay
        if rule.tunable is not None:
            rate = float(self._own.value(own_rate(rule.tunable)))
        if rule.schedule is None:
            return rate
        if rule.schedule.identity:
            own = Own(rule.schedule.name, "resource", kind=OwnKind.GIVEN, key=rule.schedule.identity)
            return rate * float(self._own.value(own))
        counters = self._counters.get(variable.id, set())
        if len(counters) != 1:
            return None
        (number,) = counters
        steps = self._own.steps if number < 0 else int(state[self._places[number]])
        return rate * rule.schedule.resolved().at(steps)

    def _initial(self, variable: Variable) -> Array:
        """The first weight of a variable."""
        return self._own.value(Own(variable.name, "resource", kind=OwnKind.INITIAL, key=variable.key))

    def _compare_other(
        self, account: Account, before: Array, plain: Array, now: Array, replay: Callable[[], Array]
    ) -> None:
        """Compares what no rule decays with the original, or with the plan where a decay may reach it."""
        error = ulps(plain, now, before, whole=True)
        account.seen = True
        account.fits &= error <= self._settings.tolerance
        if not account.certain:
            expected = replay()
            in_pieces = ulps(expected, now, before, whole=True)
            # If no decay of the plan reaches it, the pieces of a compiled step may round differently from the whole.
            untouched = ulps(expected, plain, before, whole=True) <= self._settings.tolerance
            error = min(error, in_pieces) if untouched else in_pieces
        account.error = max(account.error, error)

    def _replay(self, run: _Run) -> tuple[list[Array], list[Any]]:
        """The variables and results of the original, run in pieces with the decays of the plan."""
        if run.replay is None:
            if self._replayed is None:
                self._replayed = Reference(self._step, self._decided.injections, own=self._own)
            reference = self._replayed
            self._own.steps = run.steps
            run.replay = self._after(self._mine, run.state, lambda: _leaves(reference.run(run.call.flat)))
        return run.replay

    def _probe(self, state: Sequence[Array], call: Call) -> None:
        """Tests the learning rates."""
        slots = [
            place
            for place, account in enumerate(self._accounts)
            if account.variable is not None and not account.variable.trainable
        ]
        run = lambda state, step: self._after(self._mine, state, step)[0]  # noqa: E731
        verdicts = self._rates.probe(call.flat, run, state, self._places, slots) if self._rates else {}
        verdicts |= dict.fromkeys(self._rates.nowhere, False)  # a constant that is missing is no factor of the update
        for account in self._accounts:
            if not account.scaled or account.missing:
                continue
            assert account.variable is not None
            assert account.rule is not None
            writing = self._notice.writing(account.variable)
            assert writing is not None
            is_factor = verdicts.get(account.variable.id)
            account.learning_rate = RateCheck.PROBED if is_factor else RateCheck.PLAN
            # A rate that a rule names is the user's choice; an update that is no sum may not be a multiple of its rate.
            named = account.rule.learning_rate is not None
            if is_factor is False and account.certain and writing.adds and not named:
                account.learning_rate = RateCheck.REFUTED
                name = self._rates.name(account.variable.id)
                account.reason = (
                    f"its decay is multiplied by '{name}', which is not its learning rate: doubled, it does not double "
                    "the update"
                )
                if self._rates.can_be_named(account.variable.id):
                    account.reason += f"; if it is meant all the same, write 'learning_rate: {name}' in the rule"

    def _after(
        self, variables: Sequence[tf.Variable], state: Sequence[Array], run: Callable[[], Any], what: str = "original"
    ) -> tuple[list[Array], Any]:
        """The variables after a run from some state, and its results."""
        _assign(variables, state)
        try:
            result = run()
        except tf.errors.OpError as error:
            reason = str(error.message).partition("[[{{")[0].strip().splitlines()[-1:]
            raise VerifyError(f"the {what} step fails on these arguments: {' '.join(reason)}") from error
        return _values(variables), result


@dataclass
class _Run:
    """One run of the original.

    Attributes:
        call: its arguments.
        state: the variables before it.
        plain: the variables after it.
        outputs: what it returned.
        rates: the learning rate of each variable in it, by its number.
        replay: the variables and results with the decays of the plan, once they are known.
        steps: the number of updates before it, where graphwd counts them.
    """

    call: Call
    state: Sequence[Array]
    plain: Sequence[Array]
    outputs: Sequence[Any]
    rates: dict[int, float] = field(default_factory=dict)
    replay: tuple[list[Array], list[Any]] | None = None
    steps: int = 0


def _says(rule: Rule, writing: Writing) -> bool:
    """Whether a run of the whole original tells the value of a decayed variable."""
    return is_decoupled(rule) and writing.once and (rule.semantics.order is Order.AFTER or writing.adds)


def _learning_rate(rule: Rule, rate: float) -> float:
    """The constant learning rate that a plan has multiplied a rate by."""
    power = (rule.peak_learning_rate or 1.0) * rate / rule.weight_decay
    return power ** (1 / rule.semantics.scale.power)


def _is_early(rule: Rule, writing: Writing | None) -> bool:
    """Whether a decay may come before the last write of its variable."""
    if writing is None or _says(rule, writing):
        return False
    return not is_decoupled(rule) or rule.semantics.order is Order.BEFORE


def _where(known: Array, expected: Array, other: Array) -> Array:
    return np.where(np.broadcast_to(known, expected.shape), expected, other)


def _leaves(result: Any) -> list[Any]:
    """The results of a step as arrays; None for a result without content, such as a handle."""
    tensors = [leaf for leaf in tf.nest.flatten(result, expand_composites=True) if tf.is_tensor(leaf)]
    return [None if tensor.dtype in (tf.resource, tf.variant) else tensor.numpy() for tensor in tensors]


def _values(variables: Iterable[tf.Variable]) -> list[Array]:
    return [variable.numpy() for variable in variables]


def _assign(variables: Iterable[tf.Variable], values: Iterable[Array]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _refuse_random(step: Any, first: Sequence[Array], second: Sequence[Array]) -> None:
    # The first run of a traced function may round otherwise than later ones.
    if all(ulps(one, two, one, whole=True) <= _ROUNDING for one, two in zip(first, second, strict=True)):
        return
    ops = {op.type for op in step.graph.get_operations() if "Random" in op.type or op.type == "TruncatedNormal"}
    hint = f": it draws random numbers ({', '.join(sorted(ops))})" if ops else ""
    raise VerifyError(f"the step gives different results from the same state{hint}; verify it without that")
