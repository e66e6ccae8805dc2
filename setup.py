"""Build of the compiled modules, in one of three flavours, each in a folder of its own.

VEDETTE_BUILD=release   optimised (the default)
VEDETTE_BUILD=trace     line tracing for coverage and profilers
VEDETTE_BUILD=sanitize  AddressSanitizer and UndefinedBehaviorSanitizer
VEDETTE_BUILD=fuzz      the same with libFuzzer's coverage (clang), of what takes records
"""

import os
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAVOURS = {
    "release": (["-O3", "-g1"], [], {}),
    "trace": (["-O1", "-g"], [], {"linetrace": True, "profile": True}),
    "sanitize": (
        [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
        ],
        ["-fsanitize=address,undefined"],
        {},
    ),
    # The sanitizers' runtimes are in the program that loads the modules, tests/fuzz/driver.c.
    "fuzz": (
        [
            "-O1",
            "-g",
            "-fno-omit-frame-pointer",
            "-fsanitize=fuzzer-no-link,address,undefined",
            # clang takes the arrays at the end of Image and Text (proctable.pxd) for all there is;
            # AddressSanitizer knows how large the blocks are.
            "-fno-sanitize=bounds",
            "-fno-sanitize-recover=undefined",
        ],
        [],
        {},
    ),
}
FUZZED = ("cache", "engine", "index", "layout", "proctable", "ring", "tables")
flavour = os.environ.get("VEDETTE_BUILD", "release")
if flavour not in FLAVOURS:
    raise SystemExit(f"VEDETTE_BUILD={flavour}: expected one of {', '.join(FLAVOURS)}")
compile_args, link_args, directives = FLAVOURS[flavour]
build_root = Path("build") / flavour
if flavour == "fuzz":
    os.environ.setdefault("CC", "clang")
    os.environ.setdefault("LDSHARED", "clang -shared")


class BuildExtInFlavourFolder(build_ext):
    """An editable build goes to build/<flavour>, where core/__init__.py looks for it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.inplace or self.editable_mode:
            self.build_lib = str(build_root)
            self.build_temp = str(build_root / "temp")
        self.parallel = self.parallel or True

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: build_lib is the final place."""


def _size_bytes(path: Path) -> int:
    return path.stat().st_size


# The largest first: several are compiled beside each other, and that one takes longest.
extensions = [
    Extension(
        f"vedette.core.{path.stem}",
        [str(path)],
        include_dirs=["vedette/bpf", "vedette/core", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
        + ([("CYTHON_TRACE_NOGIL", "1")] if flavour == "trace" else []),
        extra_compile_args=[
            "-std=c11",
            "-fno-strict-aliasing",
            "-Wall",
            "-Wno-unused-function",
            "-Wno-sign-compare",
            *compile_args,
        ],
        extra_link_args=link_args,
        depends=[str(header) for header in sorted(Path("vedette").glob("[bc]*/*.h"))],
    )
    for path in sorted(Path("vedette/core").glob("*.pyx"), key=_size_bytes, reverse=True)
    if flavour != "fuzz" or path.stem in FUZZED
]

setup(
    packages=[
        "vedette",
        "vedette.core",
        "vedette.agent",
        "vedette.aggregator",
        "vedette.bpf",
        "vedette.bench",
        "vedette.rules",
    ],
    package_data={
        "vedette": ["py.typed"],
        "vedette.core": ["*.pyi", "*.pxd", "*.h"],
        "vedette.bench": ["*.c"],
        "vedette.bpf": ["*.h", "*.c"],
        "vedette.rules": ["*.yaml"],
    },
    ext_modules=cythonize(
        extensions,
        build_dir=str(build_root / "cython"),
        nthreads=os.cpu_count() or 1,
        compiler_directives={"language_level": 3, "embedsignature": True, **directives},
    ),
    cmdclass={"build_ext": BuildExtInFlavourFolder},
)
