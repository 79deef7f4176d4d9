"""The sources that a command line can name: a Python step or a model in files. Only opening imports TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphwd.errors import UsageError
from graphwd.progress import progress

if TYPE_CHECKING:
    from graphwd.checking.verify import Pair
    from graphwd.models.target import Model, Target


@dataclass(frozen=True, slots=True)
class Files:
    """A SavedModel directory or a ``.meta`` file.

    Attributes:
        text: the argument of the user.
        path: its path.
        function: a function, a signature, or the tags of a graph; None for all that train.
    """

    text: str
    path: str
    function: str | None = None

    def open(self) -> Model:
        """Reads its protos, for planning, rewriting, stripping or describing."""
        from graphwd.models.saved_model import open_model

        with progress("reading"):
            return open_model(self.path, None if self.function is None else [self.function])

    def beside(self, rewritten: str) -> Sequence[Pair]:
        """Loads each function that trains, with its rewritten form, for verification."""
        from graphwd.checking.verify_files import model_pairs

        if self.path.endswith(".meta"):
            raise UsageError(f"{self.text}: a .meta file cannot be verified; verify a SavedModel of the graph")
        with progress("loading"):
            return model_pairs(self.path, self.function, rewritten)


@dataclass(frozen=True, slots=True)
class PythonSource:
    """An attribute of a file or module.

    Attributes:
        text: the argument of the user.
        module: where a plain name is looked for.
    """

    text: str
    module: str | None

    def open(self) -> Target:
        """Imports it, which runs its code, for planning and rewriting."""
        from graphwd.models.export import PythonStep
        from graphwd.steps.load import find_step

        with progress("importing"):
            named = find_step(self.text, self.module)
        return PythonStep(named.step, named.name)

    def beside(self, rewritten: str) -> Sequence[Pair]:
        """Loads each trace, likewise."""
        from graphwd.checking.verify_files import step_pairs
        from graphwd.steps.load import find_step

        with progress("loading"):
            named = find_step(self.text, self.module)
            return step_pairs(named.step, named.name, rewritten)


def source_of(text: str, module: str | None) -> Files | PythonSource:
    """Tells what kind of source a text names.

    Args:
        text: a directory, a ``.meta`` file, either with a function behind a colon, or the name of a Python step.
        module: where a plain name is looked for.

    Raises:
        UsageError: a model in files is named, and a module besides.
    """
    path, _, name = text.rpartition(":")
    if os.path.isdir(text) or text.endswith(".meta"):
        source = Files(text, text)
    elif path and (os.path.isdir(path) or path.endswith(".meta")):
        source = Files(text, path, name)
    else:
        return PythonSource(text, module)
    if module is not None:
        raise UsageError(f"{text} says itself where it is; leave --module {module} out")
    return source
