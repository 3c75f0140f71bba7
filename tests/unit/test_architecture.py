"""Rules that no linter here knows: sizes, what the extension imports, what a start imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("src", "tests", "bench", "tools")
    for path in (ROOT / folder).rglob("*.py")
    if not path.name.startswith("_uid_tables")  # generated: one long table
)
EXTENSION = sorted((ROOT / "ext").rglob("*.py[xd]"))

# About 600 lines and 70; a table of cases may be longer than code that has to be understood.
MODULE_LINES_MAX = 620
TEST_MODULE_LINES_MAX = 1000
FUNCTION_LINES_MAX = 75

# What a .pyx or .pxd may import; import-linter cannot see these files. What is not listed here is
# refused, so that no I/O, clock or thread creeps into wire.
ALLOWED_IMPORTS = {
    "wire": {"cpython", "cython", "libc", "dcmhaul.wire", "dcmhaul.errors", "dcmhaul.uids"},
    "net": {
        "cpython",
        "cython",
        "libc",
        "posix",
        "dcmhaul.wire",
        "dcmhaul.net",
        "dcmhaul.errors",
        "errno",
        "os",
        "socket",
    },
}

# SendQueue.drain reads files for transports that have no descriptor.
EXCEPTIONS = {"ext/dcmhaul/wire/_fragments.pyx": {"os"}}

# Modules whose import costs more than a start may take; --version needs none of them.
HEAVY = (
    "trio",
    "pydicom",
    "numpy",
    "sqlalchemy",
    "pydantic",
    "plotly",
    "rich",
    "prometheus_client",
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SOURCES, *EXTENSION], ids=relative)
def test_modules_are_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    most = TEST_MODULE_LINES_MAX if ROOT / "tests" in path.parents else MODULE_LINES_MAX
    assert lines <= most, f"{relative(path)} has {lines} lines: split it"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{node.name} ({lines} lines)"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long, f"{relative(path)}: {', '.join(long)}"


def imported(source: str) -> set[str]:
    """The modules that Cython source imports or cimports, `cdef extern from` headers excepted."""
    found: set[str] = set()
    for line in source.splitlines():
        whole = re.match(r"\s*from\s+([\w.]+)\s+c?import\b", line)
        plain = re.match(r"\s*c?import\s+([\w., ]+)", line)
        if whole:
            found.add(whole[1])
        elif plain:
            found.update(name.split()[0] for name in plain[1].split(",") if name.strip())
    return found


def allowed(module: str, folder: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in ALLOWED_IMPORTS[folder])


@pytest.mark.parametrize("path", EXTENSION, ids=relative)
def test_the_extension_imports_from_its_list_alone(path: Path) -> None:
    folder = path.relative_to(ROOT / "ext" / "dcmhaul").parts[0]
    if path.parent == ROOT / "ext" / "dcmhaul":
        assert not imported(path.read_text())
        return
    refused = {name for name in imported(path.read_text()) if not allowed(name, folder)}
    refused -= EXCEPTIONS.get(relative(path), set())
    assert not refused, f"{relative(path)} imports {sorted(refused)}"


def test_the_import_check_sees_a_violation() -> None:
    planted = "from libc.string cimport memcpy\nimport socket, time\n  from dcmhaul.net import x\n"
    assert imported(planted) == {"libc.string", "socket", "time", "dcmhaul.net"}
    assert not allowed("socket", "wire")
    assert not allowed("dcmhaul.network", "net")


def test_every_extension_module_has_a_typed_face() -> None:
    for path in EXTENSION:
        if path.suffix == ".pyx":
            face = ROOT / "src" / path.relative_to(ROOT / "ext").with_suffix(".pyi")
            assert face.exists(), f"{relative(path)} has no {relative(face)}"


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after the code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def test_version_imports_nothing_heavy() -> None:
    found = modules_after("from dcmhaul.__main__ import main\nassert main(['--version']) == 0")
    assert not found.intersection(HEAVY)


def test_the_loop_of_heavy_modules_would_be_seen() -> None:
    assert "trio" in modules_after("import trio")
