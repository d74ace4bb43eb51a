"""The head of every command: arguments, signals, a user's errors, and the command line as it is printed."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_type_hints

import tyro

from rlmix.classifier.errors import DataWarning, InputError
from rlmix.experiments.runs.errors import exit_on_user_error
from rlmix.experiments.runs.signals import interrupt_on_sigterm

Config = TypeVar("Config")

PYTHONS = warnings.formatwarning
PROGRAM = "rlmix"  # the console script
WITH_RESUME = ("--resume", "--trust", "--no-trust", "--dataset", "--data-root", "--address")  # options that count then


def spelling(command: str) -> str:
    """Return how a user calls a command, from however this program was called.

    Args:
        command: path of its file below experiments/, without .py.
    """
    if Path(sys.argv[0]).name == PROGRAM:
        return f"{PROGRAM} {command.replace('_', '-')}"
    return f"python experiments/{command}.py"


class Call:
    """Call of a command: its command line, and the command that resumes it.

    Args:
        command: path of its file below experiments/, without .py.
        arguments: those on the command line.
    """

    def __init__(self, command: str, arguments: Sequence[str]) -> None:
        self.command, self.arguments = spelling(command), list(arguments)
        self.resume: str | None = None  # the command that resumes, once there is something to resume

    @property
    def line(self) -> str:
        """The whole command line."""
        return shlex.join([*self.command.split(), *self.arguments])

    def parse(self, kind: type[Config], description: str | None, *, default: Config | None = None) -> Config:
        """Return the options of the command line.

        Args:
            kind: dataclass of the options.
            description: text of the help.
            default: options that the command line changes; optional, defaults to those of the class.

        Raises:
            SystemExit: the options are wrong, or `--help` was asked for.
        """
        defaults: dict[str, Any] = {} if default is None else {"default": default}
        if {"-h", "--help"} & {*self.arguments}:
            _join_help_lines(kind)
            description = re.sub("^(?=python )", "    ", description or "", flags=re.MULTILINE)  # a line each
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return tyro.cli(kind, args=self.arguments, description=description, **defaults)
        except SystemExit as stopped:
            # An option that a configuration refuses is told in our own line instead of tyro's box.
            cause: BaseException | None = stopped
            while cause is not None and not isinstance(cause, InputError):
                cause = cause.__cause__ or cause.__context__
            if cause is not None:
                raise cause from None
            sys.stderr.write(said.getvalue())
            raise

    def warn_of_ignored(self, *counting: str) -> None:
        """Say of a resumed run which options have no effect because those of its folder are taken.

        Args:
            counting: further options that count, with their dashes.
        """
        names = dict.fromkeys(_spelt(argument)[0] for argument in self.arguments if argument.startswith("--"))
        if ignored := [name for name in names if name not in (*WITH_RESUME, *counting)]:
            print(
                f"warning: {', '.join(ignored)} without effect: --resume takes the options of its run folder",
                file=sys.stderr,
            )

    def value(self, option: str) -> str | None:
        """Return what follows an option: a preset must be known before the rest, whose defaults it sets.

        Args:
            option: with its dashes; `option NAME` and `option=NAME` are the same, and the last one counts.
        """
        value = None
        for index, argument in enumerate(self.arguments):
            name, own = _spelt(argument)
            if name == option and (own is not None or index + 1 < len(self.arguments)):
                value = self.arguments[index + 1] if own is None else own
        return value


def _spelt(argument: str) -> tuple[str, str | None]:
    """Return an option with hyphens, as tyro takes underscores for them, and its value where `=` gives one."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-"), value if equals else None


def _join_help_lines(kind: Any) -> None:
    """Give each option of a configuration its docstring as help, without the line breaks of the source.

    tyro would keep those before the docstring's indented lines.
    """
    from docstring_parser import parse_from_object

    for part in get_args(kind):  # of a union, or what is annotated
        _join_help_lines(part)
    if isinstance(kind, type) and is_dataclass(kind):
        sources = [source for source in reversed(kind.__mro__) if source is not object]
        texts = {
            text.arg_name: text.description or "" for source in sources for text in parse_from_object(source).params
        }
        hints = get_type_hints(kind, include_extras=True)
        for entry in fields(kind):
            entry.metadata = MappingProxyType({**entry.metadata, "help": " ".join(texts.get(entry.name, "").split())})
            _join_help_lines(hints[entry.name])


@contextmanager
def command(name: str, arguments: Sequence[str] | None = None) -> Iterator[Call]:
    """Run a command's body: SIGTERM interrupts as Ctrl-C does, and a user's errors end it in one line.

    Args:
        name: path of its file below experiments/, without .py.
        arguments: optional, defaults to those of this process.
    """
    call = Call(name, sys.argv[1:] if arguments is None else arguments)
    interrupt_on_sigterm()
    with exit_on_user_error(lambda: call.resume), _warnings_in_one_line():
        yield call


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    before = warnings.formatwarning
    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = before


def format_warning(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """Format a warning for `warnings.formatwarning`: one about data in one line, without the place in the code."""
    return f"warning: {message}\n" if issubclass(category, DataWarning) else PYTHONS(message, category, *place, **line)
