"""Everything else is in pyproject.toml; this names the extension for setuptools."""

from setuptools import setup

setup(cffi_modules=["build_ext.py:ffi"])
