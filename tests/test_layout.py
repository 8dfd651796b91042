"""Rules of the house that a reader cannot see from one file."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TypeGuard

from lim_sglang.host.host_check import source_folder
from lim_sglang.host.names import FORKS, HOST_NAMES
from lim_sglang.host.versions import supported_range

ROOT = Path(__file__).parents[1]


def test_import_kernels_never_finds_this_project() -> None:
    """Hugging Face's package ``kernels`` is a dependency of SGLang; the folder of that name must not shadow it."""
    code = "import kernels; print([*kernels.__path__])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert str(ROOT / "kernels") not in found.stdout


# The floors of the house, from the ground up: a room imports from itself and from floors below.
FLOORS = (
    ("lim_kernels", "lim_cpu_host"),
    ("lim_sglang", "lim_sglang.errors"),
    ("lim_sglang.config",),
    ("lim_sglang.layer_plan",),
    ("lim_sglang.metrics", "lim_sglang.host"),
    ("lim_patches",),
    ("lim_sglang.attention",),
    ("lim_sglang.speculative",),
    ("lim_sglang.plugin",),
    ("lim_sglang.tools.analysis", "lim_sglang.tools.servers"),
    ("lim_sglang.tools",),
    ("bench.driver", "bench.timing", "bench.plugins"),
    ("bench.speed", "bench.fidelity", "bench.reasoning", "bench.programs", "bench.soak"),
    ("bench.figure", "bench.tables"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def sources() -> dict[str, Path]:
    """Every module of this project, tests left out, by its dotted name."""
    roots = {
        "lim_kernels": "kernels",
        "lim_patches": "patches",
        "lim_cpu_host": "patches",
        "lim_sglang": ".",
        "bench": ".",
    }
    found = {}
    for package, root in roots.items():
        for path in (ROOT / root / package).rglob("*.py"):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


SOURCES = sources()


def imports_of(module: str) -> set[str]:
    """Dotted names that a module imports, anywhere in it; ``from a import b`` is ``a.b`` where that is a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = whole & SOURCES.keys()
            names |= modules if modules == whole else modules | {node.module}
    return names


def room_of(module: str) -> str:
    """The longest name of a room that ``module`` lies in."""
    return max((room for room in FLOOR_OF if f"{module}.".startswith(f"{room}.")), key=len)


def test_no_room_imports_from_a_higher_one() -> None:
    arrows = {
        (room_of(module), room_of(name), module)
        for module in SOURCES
        for name in imports_of(module) & SOURCES.keys()
        if room_of(module) != room_of(name)
    }
    assert len(arrows) > 50, "the scan must see imports at all"
    wrong = [f"{module} imports from {target}" for room, target, module in arrows if FLOOR_OF[target] >= FLOOR_OF[room]]
    assert wrong == []


def test_no_module_imports_itself_in_the_end() -> None:
    below = {module: imports_of(module) & SOURCES.keys() for module in SOURCES}
    while free := [module for module, names in below.items() if not names & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"an import circle lies among {sorted(below)}"


def test_few_files_lie_flat() -> None:
    for folder, most in {"lim_sglang": 10, "bench": 6}.items():
        flat = sorted(path.name for path in (ROOT / folder).glob("*.py"))
        assert len(flat) <= most, flat


def test_few_rooms_touch_sglang() -> None:
    """Entry points, the two rooms that run inside SGLang, four files of ``host``, and the patches besides."""
    importers = {
        module
        for module in SOURCES
        if module.startswith(("lim_sglang.", "lim_kernels."))
        and any(name.split(".")[0] == "sglang" for name in imports_of(module))
    }
    inside = {module for module in importers if module.startswith(("lim_sglang.attention.", "lim_sglang.speculative."))}
    assert inside
    assert importers - inside == {
        "lim_sglang.host.compat",
        "lim_sglang.host.finders",
        "lim_sglang.host.model",
        "lim_sglang.host.ranks",
        "lim_sglang.plugin",
        "lim_sglang.tools.doctor",
    }


def sglang_names_of(module: str) -> set[str]:
    """Names of SGLang that a module imports, attributes that it reads of them, and targets of its patches."""
    tree = ast.parse(SOURCES[module].read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in imports
        if node.module and node.module.split(".")[0] == "sglang"
        for alias in node.names
    }
    names = {name for name in imported.values() if not is_module_of_sglang(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            names.add(f"{imported[node.value.id]}.{node.attr}")
        if is_call(node) and ast.unparse(node.func) == "Patch" and isinstance(node.args[0], ast.Constant):
            names.add(str(node.args[0].value))
    return names


def is_module_of_sglang(name: str) -> bool:
    base = source_folder(name)
    return base.is_dir() or base.with_suffix(".py").is_file()


def is_listed(name: str, listed: set[str]) -> bool:
    """Whether ``name``, an attribute of it, or what its package has from one of its own modules is in the list."""
    package, _, last = name.rpartition(".")
    whole = name in listed or any(path.startswith(f"{name}.") for path in listed)
    return whole or any(path.startswith(f"{package}.") and path.endswith(f".{last}") for path in listed)


def test_every_name_of_sglang_is_listed() -> None:
    listed = {name.path for name in (*HOST_NAMES, *FORKS)}
    ours = [module for module in SOURCES if module.startswith(("lim_sglang", "lim_patches"))]
    used = {name: module for module in ours for name in sglang_names_of(module)}
    assert len(used) > 60, "the scan must see names at all"
    assert [f"{module}: {name}" for name, module in used.items() if not is_listed(name, listed)] == []


LONGEST_FUNCTION = 50  # lines, Triton kernels aside


def lines_of(function: ast.FunctionDef) -> int:
    """Its lines; a kernel's launch, whose arguments stand one a line, counts as one."""
    launches = [node for node in ast.walk(function) if is_call(node) and isinstance(node.func, ast.Subscript)]
    return height(function) - sum(height(launch) - 1 for launch in launches)


def height(node: ast.FunctionDef | ast.Call) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def test_functions_fit_a_screen() -> None:
    long = [
        f"{module}: {node.name} has {lines_of(node)} lines"
        for module, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        and lines_of(node) > LONGEST_FUNCTION
    ]
    assert long == []


# What opens a port, unpickles, or runs code that it was handed; a room that may is named with what it does there.
DANGEROUS_MODULES = {
    *("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy"),
    *("socket", "socketserver", "http", "xmlrpc", "multiprocessing.connection", "multiprocessing.managers"),
    *("fastapi", "starlette", "uvicorn", "zmq"),
}
DANGEROUS_CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "yaml.load", "os.system"}
ALLOWED_DANGERS = {
    "lim_sglang.host.ports: socket",  # binds to see whether a port is free, and lets go
    "lim_sglang.tools.servers.ports: socket",  # likewise
}


def dangers_of(module: str) -> set[str]:
    """Dangerous modules that are imported anywhere in ``module`` and dangerous functions that are called in it."""
    imported = {
        danger for name in imports_of(module) for danger in DANGEROUS_MODULES if f"{name}.".startswith(f"{danger}.")
    }
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(SOURCES[module].read_text())) if is_call(node)}
    return {f"{module}: {danger}" for danger in imported | (calls & DANGEROUS_CALLS)}


def is_call(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call)


def test_the_plugin_opens_no_port_and_unpickles_nothing() -> None:
    shipped = [module for module in SOURCES if not module.startswith("bench")]
    assert set().union(*map(dangers_of, shipped)) == ALLOWED_DANGERS


def test_ports_are_only_looked_at() -> None:
    """The room with sockets never listens on one."""
    for entry in ALLOWED_DANGERS:
        text = SOURCES[entry.split(":")[0]].read_text()
        assert ".bind(" in text
        assert not any(word in text for word in (".listen(", ".accept(", "create_server", ".recv"))


def test_tested_range_is_the_one_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["sglang"] == [supported_range()]
    assert not any(requirement.startswith(("sglang", "torch")) for requirement in project["dependencies"])
