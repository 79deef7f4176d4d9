"""Finds the training step that a command line names: ``module:attr``, ``file.py:attr`` or a plain name."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from graphwd.errors import StepError, UsageError
from graphwd.steps.holders import is_keras_model
from graphwd.steps.read import is_concrete, is_polymorphic


@dataclass(frozen=True, slots=True)
class NamedStep:
    """A training step and its own name.

    Attributes:
        name: the name of the function, without module and objects.
        step: a ``tf.function``, a ``ConcreteFunction`` or a Keras model.
    """

    name: str
    step: Any


def find_step(text: str, module: str | None = None) -> NamedStep:
    """Finds and imports a training step.

    Args:
        text: ``package.module:attr``, ``path/to/file.py:attr``, or the name of an attribute of ``module``. The
            attribute may be dotted. It is a ``tf.function``, a ``ConcreteFunction``, a Keras model, or a function
            without parameters that returns one of these.
        module: a module or ``.py`` file for a plain name; None for ``./step_fn.py``.

    Returns:
        The step.

    Raises:
        StepError: there is no such file, module or attribute, it does not import, or it is no training step.
    """
    container, colon, attribute = text.rpartition(":")
    if text.endswith(".py"):
        raise StepError(f"{text}: names a file but no attribute; write {text}:step_fn")
    if colon and not (container and attribute):
        raise UsageError(f"{text}: write path/to/file.py:ATTR or package.module:ATTR")
    if colon and module is not None:
        raise UsageError(f"{text} says itself where it is; leave --module {module} out")
    if not colon:
        container, attribute = module or "step_fn.py", text
        if module is None and not os.path.isfile(container):
            raise StepError(
                f"{text}: there is no directory of that name, and no ./step_fn.py in which a plain name is looked for; "
                "write path/to/file.py:ATTR, or give --module"
            )
    return _as_step(_attribute(_load(container), container, attribute), f"{container}:{attribute}")


def _load(container: str) -> ModuleType:
    if container.endswith(".py"):
        path = Path(container)
        if not path.is_file():
            raise StepError(f"{container}: no such file; name the step as path/to/file.py:attr or package.module:attr")
        with _imports_from(path.parent, container):
            # A name of its own: a file called random.py must not become the standard library's.
            name = f"graphwd_step_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            # Dataclasses and pickling look a class's module up by name.
            sys.modules[name] = loaded
            spec.loader.exec_module(loaded)
            return loaded
    with _imports_from(Path.cwd(), container):
        return importlib.import_module(container)


@contextlib.contextmanager
def _imports_from(folder: Path, container: str) -> Generator[None]:
    """Lets a user's code import modules from its folder, also when it is traced; turns its failure into one message."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == container:
            raise StepError(f"{container}: no such module; name a file as path/to/file.py:attr") from None
        raise StepError(f"{container} does not import: {_told(error)}") from None


def _attribute(module: ModuleType, container: str, attribute: str) -> Any:
    target: Any = module
    for part in attribute.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            names = [name for name in dir(target) if not name.startswith("_")]
            close = difflib.get_close_matches(part, names, n=1)
            steps = sorted(name for name, value in vars(module).items() if _is_step(value))
            hint = f"; did you mean '{close[0]}'?" if close else ""
            if steps and not close:
                hint = f"; its tf.functions are {', '.join(map(repr, steps))}"
            raise StepError(f"{container}: no attribute '{attribute}'{hint}") from None
        except Exception as error:
            raise StepError(f"{container}: reading '{attribute}' failed: {type(error).__name__}: {error}") from None
    return target


def _as_step(target: Any, where: str) -> NamedStep:
    name = where.rpartition(":")[2].rpartition(".")[2]
    if _is_step(target) or _is_model(target):
        return NamedStep(name, target)
    if not callable(target):
        raise StepError(
            f"{where} is a {type(target).__name__}; name a tf.function, a Keras model, or a function that returns one"
        )
    try:
        step = target()
    except (Exception, SystemExit) as error:
        raise StepError(
            f"{where} is not a tf.function, and calling it without arguments to get one failed: {_told(error)}; "
            "decorate a step with tf.function(input_signature=...)"
        ) from None
    if not _is_step(step) and not _is_model(step):
        raise StepError(
            f"{where} returned a {type(step).__name__}; return a tf.function, a ConcreteFunction or a Keras model"
        )
    return NamedStep(name, step)


def _told(error: BaseException) -> str:
    """The message of an exception in the user's code, and the line of that code that raised it."""
    text = f"{type(error).__name__}: {error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, importlib.__file__)]
    frames = [f for f in frames if not f.filename.startswith("<frozen")]
    if isinstance(error, SyntaxError) or not frames:
        return text
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})"


def _is_model(value: object) -> bool:
    return is_keras_model(value) and not isinstance(value, type)


def _is_step(value: object) -> bool:
    return is_concrete(value) or is_polymorphic(value)
