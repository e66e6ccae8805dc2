"""Vedette: runtime security for fleets of bare-metal Linux hosts.

This folder is the import namespace. Its entries are links to the folders beside it, so that
Python, Cython, mypy and editors all find ``vedette.core`` and its siblings without settings.
"""


def __getattr__(name: str) -> str:
    """Return `__version__`, looked up when it is asked for: that imports more than a helper needs."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vedette")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0.0.0"
