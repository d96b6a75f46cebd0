"""The kernels for CPUs, native/, as a library inside the package.

All else is in pyproject.toml. Without a C++ compiler the package is installed without the library,
and MLX computes in its place.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for path in Path("native").rglob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("native").rglob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]


class BuildSideBySide(build_ext):
    """Compiles as many files at a time as there are processors; each takes half a minute."""

    def build_extensions(self) -> None:
        compile_all = self.compiler.compile

        def compile_each(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(chain(*pool.map(lambda path: compile_all([path], **options), sources)))

        self.compiler.compile = compile_each
        super().build_extensions()


setup(
    ext_modules=[
        Extension(
            "gptoss_mlx._native",
            SOURCES,
            depends=HEADERS,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
    # The library knows nothing of Python, so that one wheel of a platform serves every version.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    cmdclass={"build_ext": BuildSideBySide},
)
