"""Vedette: runtime security for fleets of bare-metal Linux hosts.

This folder is the import namespace. Its entries are links to the folders beside it, so that
Python, Cython, mypy and editors all find ``vedette.core`` and its siblings without settings.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vedette")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
