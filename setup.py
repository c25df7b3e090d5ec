"""The extension and the oldest Python it is for; all else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["build_ext.py:ffi"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
