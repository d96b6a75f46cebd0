"""The kernels for CPUs, native/, as a library inside the package.

All else is in pyproject.toml. Without a C++ compiler the package is installed without the library,
and MLX computes in its place.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(str(path) for path in Path("native").rglob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("native").rglob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]

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
)
