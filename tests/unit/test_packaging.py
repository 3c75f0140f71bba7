"""What is shipped: the declared files, and (slow) a wheel that works in an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata, resources
from pathlib import Path

import pytest

import dcmhaul

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (
    *("ext", "src", "tests", "bench", "docs", "tools", ".ci"),
    *("pyproject.toml", "setup.py", "MANIFEST.in", "Makefile"),
    *("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"),
)


def extension_modules() -> list[str]:
    """`wire/_frames` and so on, from the sources."""
    base = ROOT / "ext" / "dcmhaul"
    return sorted(str(path.relative_to(base).with_suffix("")) for path in base.rglob("*.pyx"))


def test_the_installed_version_is_the_package_version() -> None:
    assert metadata.version("dcmhaul") == dcmhaul.__version__


def test_the_command_points_at_a_function() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="dcmhaul")
    assert callable(script.load())


def test_the_package_is_marked_as_typed() -> None:
    assert resources.files("dcmhaul").joinpath("py.typed").is_file()


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{dcmhaul.__version__}]" in text or "## [Unreleased]" in text


def test_extensions_are_compiled_modules() -> None:
    for name in extension_modules():
        module = __import__(f"dcmhaul.{name.replace('/', '.')}", fromlist=["__file__"])
        assert Path(str(module.__file__)).suffix in (".so", ".pyd"), name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from that sdist alone.

    The build runs on a copy, so that it neither sees nor leaves anything in the working tree.
    """
    for needed in ("build", "Cython", "setuptools"):
        pytest.importorskip(needed, reason="a wheel is built with what `make check` installs")
    folder = tmp_path_factory.mktemp("dist")
    copy = folder / "tree"
    copy.mkdir()
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source,
                copy / name,
                ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"),
            )
        else:
            shutil.copy(source, copy / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


@pytest.mark.slow
def test_the_sdist_holds_all_sources(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in (ROOT / "ext").rglob("*.*"):
        if path.suffix in (".pyx", ".pxd", ".h"):
            assert str(path.relative_to(ROOT)) in names
    assert {name for name in SHIPPED if (ROOT / name).is_file()} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".c"))]


@pytest.mark.slow
def test_the_wheel_holds_modules_and_their_types(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        names = archive.namelist()
    assert "dcmhaul/py.typed" in names
    for name in extension_modules():
        assert f"dcmhaul/{name}.pyi" in names
        assert any(n.startswith(f"dcmhaul/{name}.") and n.endswith(".so") for n in names), name
    assert not [name for name in names if name.endswith((".pyx", ".pxd", ".c", ".h"))]
    assert all(name.startswith(("dcmhaul/", "dcmhaul-")) for name in names)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    tools = tmp_path / "env" / "bin"
    subprocess.run(
        [tools / "pip", "install", "--quiet", next(built.glob("*.whl"))], check=True, cwd=tmp_path
    )
    done = subprocess.run(
        [tools / "dcmhaul", "--version"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert dcmhaul.__version__ in done.stdout
    missing = subprocess.run(
        [
            tools / "python",
            "-c",
            "import dcmhaul.cli, dcmhaul.net.association, dcmhaul.archive.scp",
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert missing.returncode == 0, missing.stderr
