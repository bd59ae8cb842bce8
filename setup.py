"""The build of the compiled pruner; everything else is in pyproject.toml.

Without a compiler the install works, and scans run on the slower engine, which workers log at their start. With
BUILD_EXTENSION=yes a failed build makes the install fail; BUILD_EXTENSION=no leaves the extension out.
"""

import os
import sys

from setuptools import Extension, setup

choice = os.environ.get("BUILD_EXTENSION", "")
if choice not in ("", "yes", "no"):
    sys.exit(f"BUILD_EXTENSION={choice!r} is neither yes nor no")

kernel = Extension(
    "optimizer.scan._prune",
    sources=["optimizer/scan/_prune.c", "optimizer/scan/kernel/prune.c"],
    depends=["optimizer/scan/kernel/prune.h", "optimizer/scan/kernel/blocks.h", "setup.py"],
    extra_compile_args=["-std=c11", "-O3"],
    py_limited_api=True,
    optional=choice != "yes",
)
setup(
    ext_modules=[] if choice == "no" else [kernel],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
