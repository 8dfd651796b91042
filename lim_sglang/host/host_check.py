"""Reads SGLang's source, without importing it, to see whether a name still exists with the parameters relied on."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path


@dataclass(frozen=True)
class HostName:
    """One SGLang name the plugin relies on.

    Attributes:
        module: Dotted module, for example ``sglang.srt.server_args``.
        name: ``function``, ``Class``, ``Class.method`` or ``Class.attribute`` inside it.
        parameters: Parameter names that a call by this project passes or reads.
    """

    module: str
    name: str
    parameters: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Verdict:
    """What ``check`` found: ``problem`` is empty when the host offers the name as needed."""

    host_name: HostName
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


def check(names: Sequence[HostName], root: Path | None = None) -> list[Verdict]:
    """One verdict per name, in the order given.

    Args:
        root: the folder that holds the packages' folders; None for what is installed.
    """
    return [Verdict(name, _problem(name, root)) for name in names]


def constant_calls(module: str, function: str) -> list[tuple[object, ...]]:
    """The leading constant arguments of every call of ``function`` in ``module``; empty without such a module."""
    source = _module_file(module, None)
    found = []
    for node in ast.walk(_parse(source)) if source else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function:
            leading = takewhile(lambda argument: isinstance(argument, ast.Constant), node.args)
            found.append(tuple(ast.literal_eval(argument) for argument in leading))
    return found


def _problem(host_name: HostName, root: Path | None) -> str:
    found = _find(host_name.module, tuple(host_name.name.split(".")), root)
    if isinstance(found, str):
        return found
    if host_name.parameters and isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        missing = [p for p in host_name.parameters if not _accepts(found, p)]
        if missing:
            return f"takes no parameter {', '.join(missing)}"
    return ""


def _accepts(function: ast.FunctionDef | ast.AsyncFunctionDef, parameter: str) -> bool:
    arguments = function.args
    return any(a.arg == parameter for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _find(module: str, names: tuple[str, ...], root: Path | None, hops: int = 3) -> ast.AST | str:
    """The node that defines ``names`` in ``module``, or one sentence on why there is none."""
    source = _module_file(module, root)
    if source is None:
        return f"no module {module}"
    scope: ast.AST = _parse(source)
    for depth, name in enumerate(names):
        node = _member(scope, name)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and hops:
            return _find(node.module, names[depth:], root, hops - 1)
        if node is None:
            return f"no {name} in {'.'.join((module, *names[:depth]))}"
        scope = node
    return scope


def _member(scope: ast.AST, name: str) -> ast.AST | None:
    """The definition, import or assignment of ``name`` in a module or class body (``self.name = …`` included)."""
    for node in ast.walk(scope) if isinstance(scope, ast.ClassDef) else ast.iter_child_nodes(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            return node
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in _targets(node):
            return node
    return None


def _targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return {t.id if isinstance(t, ast.Name) else t.attr for t in flat if isinstance(t, ast.Name | ast.Attribute)}


def source_folder(module: str) -> Path:
    """Where a package's source lies, found from the top package's folder so that no parent package is imported.

    Raises:
        ModuleNotFoundError: the top package is not installed.
    """
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {top}")
    return Path(spec.submodule_search_locations[0]).joinpath(*rest)


def _module_file(module: str, root: Path | None) -> Path | None:
    """The module's source file."""
    try:
        base = root.joinpath(*module.split(".")) if root else source_folder(module)
    except ModuleNotFoundError:
        return None
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
