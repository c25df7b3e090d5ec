"""Everything else is in pyproject.toml; this names the extension and the oldest Python it is for."""

from setuptools import setup

setup(
    cffi_modules=["build_ext.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
