"""Builds the data plane: every ext/**/*.pyx becomes the module of the same path under dcmhaul.

Switches, by environment: DCMHAUL_DEBUG=1 (-O0 -g, bounds checks), DCMHAUL_SANITIZE=1 (ASan and
UBSan), DCMHAUL_TRACE=1 (line trace for coverage). `dcmhaul.wire._frames.BUILD` tells which are live.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
DEBUG = os.environ.get("DCMHAUL_DEBUG") == "1"
SANITIZE = os.environ.get("DCMHAUL_SANITIZE") == "1"
TRACE = os.environ.get("DCMHAUL_TRACE") == "1"

compile_args = ["-O0", "-g"] if DEBUG else ["-O2", "-g0"]
link_args: list[str] = []
macros: list[tuple[str, str | None]] = [
    ("DCMHAUL_DEBUG", str(int(DEBUG))),
    ("DCMHAUL_SANITIZE", str(int(SANITIZE))),
    ("DCMHAUL_TRACE", str(int(TRACE))),
]
if SANITIZE:
    compile_args += ["-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    link_args += ["-fsanitize=address,undefined"]
if TRACE:
    macros += [
        ("CYTHON_TRACE", "1"),
        ("CYTHON_TRACE_NOGIL", "1"),
        ("CYTHON_USE_SYS_MONITORING", "0"),
    ]

directives: dict[str, bool] = {}
if DEBUG:
    directives |= {"boundscheck": True, "wraparound": True}
if TRACE:
    directives |= {"linetrace": True}

sources = sorted(path.relative_to(ROOT) for path in ROOT.glob("ext/dcmhaul/**/*.pyx"))
extensions = [
    Extension(
        ".".join(source.relative_to("ext").with_suffix("").parts),
        [str(source)],
        include_dirs=["ext/dcmhaul/wire", "ext/dcmhaul/net"],
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for source in sources
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build/cython",
        force=DEBUG or SANITIZE or TRACE,
        compiler_directives=directives,
    )
)
