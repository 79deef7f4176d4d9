"""The commands of the command line: for each its help text, its flags, and its function."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from graphwd.cli.sources import Files, PythonSource, source_of
from graphwd.errors import StepError, UsageError
from graphwd.planning.formats import FORMATS, Format, table_of
from graphwd.planning.terminal import detail_of
from graphwd.policy.rules import Policy, load_policy

if TYPE_CHECKING:
    from graphwd.models.target import Output, Target

_STEP_FN = """\
STEP_FN is one of
  DIR or DIR:NAME           a SavedModel; all its functions and signatures that train, or those of one name
  path/to/model.meta        a TensorFlow 1 MetaGraph, with its checkpoint beside it
  path/to/file.py:ATTR      an attribute of a Python file
  package.module:ATTR       an attribute of a module, looked for in the current folder first
  NAME                      an attribute of the file or module given by --module, else of ./step_fn.py
ATTR may be dotted (trainer.step). It is a tf.function with an input_signature or traces, a ConcreteFunction, or a
function without parameters that returns one of these; for plan and init also a compiled Keras model. The file is
imported, so its code runs; of a SavedModel nothing is run.
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its help text, the flags it defines, and the function of the remaining arguments.

    The function returns the exit status where that is not 0 and yet nothing failed.
    """

    usage: str
    about: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues, Sequence[str]], int | None]


def _define_step(values: flags.FlagValues) -> None:
    flags.DEFINE_string("policy", None, "the policy file (.yaml, or a cuda-convnet .cfg)", flag_values=values)
    _define_module(values)


def _define_module(values: flags.FlagValues) -> None:
    flags.DEFINE_string("module", None, "the file or module that holds a plain STEP_FN", flag_values=values)


def _define_rewrite(values: flags.FlagValues) -> None:
    _define_step(values)
    _define_format(values, ["table", "json"], "how to tell what was done")
    _define_output(values, "ATTR_decayed or DIR_decayed")
    _define_detail(values)


def _define_output(values: flags.FlagValues, default: str) -> None:
    flags.DEFINE_string("output", None, f"the SavedModel directory to write; by default {default}", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace the output if it exists, in one step", flag_values=values)
    flags.DEFINE_bool(
        "link",
        False,
        "hard-link the weights of a SavedModel where its file system cannot share them",
        flag_values=values,
    )


def _define_format(values: flags.FlagValues, choices: list[str], what: str) -> None:
    flags.DEFINE_enum("format", "table", choices, what, flag_values=values)


def _define_detail(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("all", False, "a line for every variable, nothing folded", flag_values=values)
    flags.DEFINE_bool(
        "verbose", False, "likewise, and the nodes of its updates and decays below it", flag_values=values
    )


def _define_strip(values: flags.FlagValues) -> None:
    _define_output(values, "DIR_stripped")


def _define_plan(values: flags.FlagValues) -> None:
    _define_step(values)
    _define_format(values, list(FORMATS), "how to show the plan")
    _define_detail(values)
    flags.DEFINE_enum(
        "device",
        None,
        ["CPU", "GPU"],
        "check also that all that would be injected has a kernel on such a device, and adds no copy between it and the "
        "host; the device need not be there",
        flag_values=values,
    )


def _define_verify(values: flags.FlagValues) -> None:
    _define_step(values)
    _define_format(values, ["table", "json"], "how to show the findings")
    flags.DEFINE_bool("all", False, "a line for every variable, nothing folded", flag_values=values)
    flags.DEFINE_string("rewritten", None, "the SavedModel that rewrite wrote of STEP_FN; required", flag_values=values)
    flags.DEFINE_integer("runs", 5, "how many steps are run", flag_values=values, lower_bound=1)
    flags.DEFINE_float(
        "tolerance",
        4.0,
        "the largest error that is right, in units in the last place",
        flag_values=values,
        lower_bound=0,
    )


def _step_fn(positional: Sequence[str], what: str = "STEP_FN") -> str:
    if len(positional) != 1:
        given = f"got {' '.join(positional)}" if positional else "none was given"
        raise UsageError(f"exactly one {what} is needed, {given}")
    return positional[0]


def value_of(values: flags.FlagValues, name: str) -> Any:
    """The value of a flag."""
    flag: flags.Flag[Any] = values[name]  # pyright: ignore[reportUnknownVariableType] - of any type
    return flag.value


def choices_of(flag: flags.Flag[Any]) -> Sequence[str]:
    """The values that a flag can have; empty where it takes any text."""
    return getattr(flag.parser, "enum_values", None) or ()


def help_of(flag: flags.Flag[Any]) -> str:
    """What a flag is for, without what absl writes before and after it: its choices, and that it can be repeated."""
    text = (flag.help or "").removeprefix(f"<{'|'.join(choices_of(flag))}>: ")
    return text.partition(";\n    repeat this option")[0]


def read_policy(path: str) -> Policy:
    """Reads a policy file; without TensorFlow's start-up messages, where the policy names a formula or a schedule."""
    with _needing_tensorflow():
        return load_policy(path)


def _policy_path(values: flags.FlagValues) -> str:
    path: str | None = value_of(values, "policy")
    if path is None:
        raise UsageError("--policy is missing; write --policy policy.yaml")
    return path


def _rewrite(values: flags.FlagValues, positional: Sequence[str]) -> None:
    text = _step_fn(positional)
    form = _form(values)
    policy = read_policy(_policy_path(values))
    source = source_of(text, value_of(values, "module"))
    if value_of(values, "link") and not isinstance(source, Files):
        raise UsageError("--link is for the files of a SavedModel; a Python step is saved anew: leave --link out")
    # TensorFlow is imported only when the command line and the policy are known to be valid.
    import_tensorflow()
    from graphwd.models.target import rewrite

    with only_the_answer():
        target = source.open()
        output = value_of(values, "output") or f"{_stem(target)}_decayed"
        plan = rewrite(target, policy, _output(values, output))
    record = plan.record(purposes=False)
    if value_of(values, "format") == "json":
        decays = sum(len(part.injections) for part in plan.parts or (plan,))
        record["written"] = {"source": text, "output": output, "decays": decays}
        print(form.plan(plan, record))
    else:
        print(form.plan(plan, record))
        print(f"wrote {output}")


def _stem(target: Target) -> str:
    """The prefix of the name of its default output."""
    return os.path.normpath(target.name).removesuffix(".meta")


def _output(values: flags.FlagValues, path: str) -> Output:
    from graphwd.models.target import Output

    return Output(Path(path), bool(value_of(values, "overwrite")), bool(value_of(values, "link")))


def _form(values: flags.FlagValues) -> Format:
    """The form in which a plan is shown."""
    chosen = [name for name in ("all", "verbose") if value_of(values, name)]
    if (word := str(value_of(values, "format"))) != "table":
        if chosen:
            raise UsageError(f"--format {word} leaves nothing out; leave --{' --'.join(chosen)} out")
        return FORMATS[word]
    return table_of(detail_of(all="all" in chosen, verbose="verbose" in chosen))


def _plan(values: flags.FlagValues, positional: Sequence[str]) -> None:
    text = _step_fn(positional)
    form = _form(values)
    policy = read_policy(value_of(values, "policy")) if value_of(values, "policy") is not None else None
    source = source_of(text, value_of(values, "module"))
    import_tensorflow()
    from graphwd.models.target import plan

    if policy is None:
        _tell(values, source, form)
        return
    with only_the_answer():
        decided = plan(source.open(), policy)
    record = decided.record()
    checked = None
    if value_of(values, "device") is not None and not decided.problems:
        from graphwd.checking.kernels import check_device

        checked = check_device(decided, str(value_of(values, "device")))
        record["device"] = checked.record()
    if value_of(values, "format") == "table":
        record["problems"] = []  # they go to standard error, below
    print(form.plan(decided, record))
    decided.check()
    if checked is not None:
        checked.check()


def _tell(values: flags.FlagValues, source: Files | PythonSource, form: Format) -> None:
    """Tells what can be told without a policy: the decays in a rewritten model, else the variables and their uses."""
    from graphwd.models.target import describe, plan
    from graphwd.planning.suggest import OVERVIEW

    if value_of(values, "device") is not None:
        raise UsageError("--device checks a plan: give --policy, and a model that graphwd has not rewritten")
    with only_the_answer():
        decays = describe(source.open()) if isinstance(source, Files) else []
        account = None if decays else plan(source.open(), OVERVIEW)
    print(form.decays(decays) if account is None else form.overview(account.record()))


def _init(values: flags.FlagValues, positional: Sequence[str]) -> None:
    text = _step_fn(positional)
    source = source_of(text, value_of(values, "module"))
    import_tensorflow()
    from graphwd.models.target import plan
    from graphwd.planning.suggest import suggestion

    with only_the_answer():
        target = source.open()
        answer = suggestion(text, lambda policy: plan(target, policy))
    print(answer, end="")


def _strip(values: flags.FlagValues, positional: Sequence[str]) -> None:
    text = _step_fn(positional, "DIR")
    import_tensorflow()
    from graphwd.models.target import strip_model

    model = Files(text, text).open()
    output = value_of(values, "output") or f"{_stem(model)}_stripped"
    count = strip_model(model, _output(values, output))
    print(f"took {count} decay{'' if count == 1 else 's'} out")
    print(f"wrote {output}")


def _verify(values: flags.FlagValues, positional: Sequence[str]) -> None:
    text = _step_fn(positional)
    if value_of(values, "rewritten") is None:
        raise UsageError("--rewritten is missing; write --rewritten DIR with the SavedModel that rewrite wrote")
    every, as_json = bool(value_of(values, "all")), value_of(values, "format") == "json"
    if every and as_json:
        raise UsageError("--format json leaves nothing out; leave --all out")
    policy = read_policy(_policy_path(values))
    import_tensorflow()
    from graphwd.checking.verify import verify_pairs

    with only_the_answer():
        pairs = source_of(text, value_of(values, "module")).beside(value_of(values, "rewritten"))
        verification = verify_pairs(
            pairs, policy, runs=int(value_of(values, "runs") or 1), tolerance=float(value_of(values, "tolerance") or 0)
        )
    print(json.dumps(verification.record(), indent=2) if as_json else verification.to_text(all=every))
    verification.check()


def only_the_answer() -> contextlib.AbstractContextManager[object]:
    """Keeps the output of the user's code, which is not part of the answer, from standard output."""
    return contextlib.redirect_stdout(sys.stderr)


def import_tensorflow() -> None:
    """Imports TensorFlow."""
    with _needing_tensorflow():
        importlib.import_module("tensorflow").keras  # noqa: B018 - importing Keras prints messages, too
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)  # tf.saved_model.load warns of gradients that nobody asks for
    logging.getLogger("graphwd").setLevel(logging.ERROR)  # the plan that is printed has the notes


@contextlib.contextmanager
def _needing_tensorflow() -> Generator[None]:
    """Says in a line why TensorFlow cannot be imported, where that is so, and keeps it from talking where it can."""
    try:
        with _without_start_up_messages():
            yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
            raise StepError("TensorFlow is not installed here; install tensorflow beside graphwd") from None
        raise StepError(f"TensorFlow does not import: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def _without_start_up_messages() -> Generator[None]:
    """Keeps TensorFlow's start-up messages from standard error, on which graphwd promises its own alone.

    C++ code prints these before any of TensorFlow's own switches takes effect, hence the redirected descriptor.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere, _redirected(2, nowhere.fileno()):
        yield


@contextlib.contextmanager
def _redirected(descriptor: int, target: int) -> Generator[None]:
    saved = os.dup(descriptor)
    try:
        os.dup2(target, descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


STEP_COMMANDS: Mapping[str, Command] = {
    "rewrite": Command(
        "rewrite --policy policy.yaml [--output DIR] [--overwrite] [--format table|json] STEP_FN",
        f"Writes a SavedModel that holds STEP_FN with weight decay, and prints what was done.\n\n{_STEP_FN}",
        _define_rewrite,
        _rewrite,
    ),
    "init": Command(
        "init STEP_FN",
        "Prints a first policy for STEP_FN: a rule for each role that its variables have, with every variable named\n"
        "in a comment. Write it to a file, and try it with plan.\n\n"
        f"{_STEP_FN}",
        _define_module,
        _init,
    ),
    "plan": Command(
        "plan [--policy policy.yaml] [--format table|json|html] [--all] [--verbose] [--device GPU] STEP_FN",
        "Shows what rewrite would do, by rule: which variables it decays, and how. Variables whose names differ in\n"
        "numbers alone are folded into one line, as layer_{0…11}/kernel; --all lists each, --verbose its updates too.\n"
        "As html it is a page, to be written to a file, with a drawing of each update before and after.\n"
        "Writes nothing. Exits with 1 where rewrite would refuse. Without a policy it shows the variables and what\n"
        "each is used for; of a SavedModel that graphwd has rewritten it says how.\n\n"
        f"{_STEP_FN}",
        _define_plan,
        _plan,
    ),
    "verify": Command(
        "verify --policy policy.yaml --rewritten DIR [--format table|json] [--all] STEP_FN",
        "Runs STEP_FN and what rewrite wrote of it side by side, on made-up inputs: every trace of it, and of a\n"
        "SavedModel every function that trains. Checks each variable against the formula of its rule, and each output\n"
        "against the original, and says what each was held against. Exits with 1 where one is wrong. What repeats is\n"
        f"folded, and slot variables that are right are counted; --all lists each.\n\n{_STEP_FN}",
        _define_verify,
        _verify,
    ),
    "strip": Command(
        "strip [--output DIR] [--overwrite] DIR",
        "Writes a SavedModel without the decay that graphwd has put into DIR; its graph equals the one before.\n",
        _define_strip,
        _strip,
    ),
}
