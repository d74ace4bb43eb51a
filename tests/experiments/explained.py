"""Whether a command's help explains every option of its configuration."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from rlmix.experiments.runs.options import unprefixed_parts

# Fixed by the command, and so no options of it.
FIXED = {"TaskTrainConfig.updates", "RLMixTrainConfig.saliency"}


def texts(kind: type[Any]) -> dict[str, str]:
    """The text under each field of a dataclass and its bases, or its line under `Attributes:`."""
    found: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for entry, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                text = following.value if isinstance(following, ast.Expr) else None
                if isinstance(text, ast.Constant):
                    found[entry.target.id] = text.value
        attributes = re.findall(r"^ {4}(\w+): ((?:.+)(?:\n {8}.+)*)", inspect.getdoc(base) or "", re.MULTILINE)
        found |= {name: text for name, text in attributes if name not in found}
    return found


def require_explained(kind: type[Any], shown: str, prefix: str = "") -> None:
    """Every option stands in a help text, with what its configuration says of it; blanks and frames do not count."""
    hints, parts = get_type_hints(kind), unprefixed_parts(kind)
    for entry in fields(kind):
        if f"{kind.__name__}.{entry.name}" in FIXED:
            continue
        if is_dataclass(hints[entry.name]):
            inner = prefix if entry.name in parts else f"{prefix}{entry.name}."
            require_explained(hints[entry.name], shown, inner)  # type: ignore[arg-type]
            continue
        text = texts(kind).get(entry.name)
        assert text is not None, entry.name
        for part in (f"--{prefix}{entry.name}", text.replace("`", "")):
            assert bare(part) in shown, f"{kind.__name__}.{entry.name}"


def bare(text: str) -> str:
    """Letters and digits of a text."""
    return re.sub(r"[\s\W_]+", "", text)


def help_of(main: Callable[..., None], capsys: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Letters and digits of a command's help."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    return bare(capsys.readouterr().out)
