"""The agent's own log: one `key=value` line per happening, on the standard error (logfmt)."""

from __future__ import annotations

import logging
import sys
import time

LOGGER = logging.getLogger("vedette.agent")

_BARE = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:+@,%()[]*?#~^&;<>|!$"
)


class LogfmtFormatter(logging.Formatter):
    """Formats a record as `time=... level=... msg="..."` and its `fields`, a mapping."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        parts = [
            f"time={moment}.{int(record.msecs):03d}Z",
            f"level={record.levelname.lower()}",
            f"msg={quote(record.getMessage())}",
        ]
        fields: dict[str, object] = getattr(record, "fields", {})
        parts.extend(f"{key}={quote(value)}" for key, value in fields.items())
        if record.exc_info:
            parts.append(f"exception={quote(self.formatException(record.exc_info))}")
        return " ".join(parts)


def quote(value: object) -> str:
    """Return a value as one logfmt word: quoted where it is not plain, control bytes escaped."""
    text = str(value)
    if text and _BARE.issuperset(text):
        return text
    escaped = "".join(
        char if char.isprintable() and char not in '"\\' else _escape(char) for char in text
    )
    return f'"{escaped}"'


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char.encode("unicode_escape").decode()


def setup(level: str) -> None:
    """Send the agent's log to the standard error, from `level` upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False


def log(level: int, message: str, **fields: object) -> None:
    """Log a message with fields."""
    LOGGER.log(level, message, extra={"fields": fields})
