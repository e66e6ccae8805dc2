"""Errors that a person is to read: one sentence on stderr and an exit code, never a traceback."""

from __future__ import annotations

EXIT_RUNTIME = 1
EXIT_USAGE = 2
EXIT_DATA = 3


class AgentError(Exception):
    """Something this host or its kernel refused. Exit code 1."""

    exit_code = EXIT_RUNTIME


class ConfigError(AgentError):
    """A configuration or rule file that cannot be used; names file, line, key and cure. Exit 2."""

    exit_code = EXIT_USAGE


class DataError(AgentError):
    """Input data (a capture file) that is damaged or of another version. Exit code 3."""

    exit_code = EXIT_DATA
