"""The commands for who may speak: `vedette enroll`, `vedette rotate`, `vedette revoke`."""

from __future__ import annotations

import datetime as dt
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from vedette.aggregator.config import ConfigError, load
from vedette.aggregator.terminal import ServiceConfigOption, UsageError, service_file
from vedette.core import keys
from vedette.core.keys import KeyFileError
from vedette.core.output import clean

EXIT_RUNTIME = 1
EXIT_USAGE = 2
_OVERLAP = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _example(*lines: str) -> str:
    return (
        "Examples:\n\n"
        + "\n\n".join(f"`{line}`" for line in lines)
        + "\n\nExit codes: 0 done, 1 it failed, 2 usage or configuration."
    )


HostArgument = Annotated[
    str, typer.Argument(metavar="HOST-ID", help="The host's id; a reader's name.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="PUBLIC-KEY",
        help="The key that the host made for itself (`vedette keys init`), so that the secret "
        "never travels.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Make the key pair here, in a new file of mode 0600; bring it to the host and delete "
        "it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def enroll(
    host_id: HostArgument,
    config_file: ServiceConfigOption = None,
    key: KeyOption = None,
    out: OutOption = None,
    role: Annotated[
        str,
        typer.Option(
            metavar="agent|reader",
            help="What the key is for: to speak for a host, or to ask the store questions.",
        ),
    ] = keys.AGENT,
    as_json: JsonOption = False,
) -> None:
    """Let a host connect, or a person ask questions. The aggregator takes notice within a second.

    Either the host made its key pair and --key names the public half, or --out says where to make
    one. What the agent's configuration needs is printed.
    """
    with _failing():
        if role not in keys.ROLES:
            raise UsageError(f"--role: expected one of {', '.join(keys.ROLES)}")
        allow_list, server_key = _listen(config_file)
        made = _key(key, out)
        with _undoing(out):
            keys.enroll(allow_list, host_id, made, role)
    _tell(host_id, made, server_key, out, as_json)


def rotate(
    host_id: HostArgument,
    config_file: ServiceConfigOption = None,
    key: KeyOption = None,
    out: OutOption = None,
    overlap: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long the old key stays valid: 0s, 30m, 24h, 7d."),
    ] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Give a host a new key; the old one stays valid for a while.

    The host is to be given the new key within the overlap. An old key that is known to others is
    replaced with `--overlap 0s`.
    """
    match = _OVERLAP.fullmatch(overlap)
    with _failing():
        if match is None:
            raise UsageError("--overlap: expected a time such as 0s, 30m, 24h or 7d")
        allow_list, server_key = _listen(config_file)
        made = _key(key, out)
        now_s = time.time()
        until_s = now_s + int(match[1]) * _UNIT_S[match[2]]
        with _undoing(out):
            keys.rotate(allow_list, host_id, made, until_s, now_s)
    end = dt.datetime.fromtimestamp(int(until_s), dt.UTC)
    _tell(host_id, made, server_key, out, as_json, old_valid_until=f"{end:%Y-%m-%dT%H:%M:%SZ}")


def revoke(
    host_id: HostArgument,
    config_file: ServiceConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take all keys of a host off the list: within a second its connection is over.

    What it sent stays in the store.
    """
    with _failing():
        allow_list, _ = _listen(config_file)
        count = keys.revoke(allow_list, host_id)
    _print({"host_id": host_id, "keys_revoked": count}, as_json)


def mount(app: typer.Typer) -> None:
    """Add the commands to `vedette`."""
    app.command(
        epilog=_example(
            "vedette enroll web-1 --key 'rq5...'",
            "vedette enroll web-1 --out web-1.key",
            "vedette enroll alice --key 'm2c...' --role reader",
        )
    )(enroll)
    app.command(
        epilog=_example(
            "vedette rotate web-1 --key 'x7w...'",
            "vedette rotate web-1 --out web-1.key --overlap 0s",
        )
    )(rotate)
    app.command(epilog=_example("vedette revoke web-1"))(revoke)


@contextmanager
def _failing() -> Iterator[None]:
    """Turn what cannot be done into a message and an exit code."""
    try:
        yield
    except (UsageError, ConfigError) as error:
        _say(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except KeyFileError as error:
        _say(str(error))
        raise typer.Exit(EXIT_RUNTIME) from None


@contextmanager
def _undoing(out: Path | None) -> Iterator[None]:
    """Leave no key pair behind that nobody may use."""
    try:
        yield
    except KeyFileError:
        if out is not None:
            out.unlink()
        raise


def _listen(config_file: Path | None) -> tuple[str, str]:
    """Return the allow-list's path and the aggregator's public key."""
    config_file = service_file(config_file)
    listen = load(config_file).listen
    if listen.allow_list is None or listen.key_file is None:
        raise UsageError(
            f"{config_file}: listen.key_file and listen.allow_list are not set; "
            "`vedette keys init FILE` makes the first, the second is made here"
        )
    return listen.allow_list, keys.read_pair(listen.key_file).public


def _key(key: str | None, out: Path | None) -> str:
    if (key is None) == (out is None):
        raise UsageError("give one of --key (the host's public key) and --out (make a key pair)")
    if key is not None:
        return keys.check_key(key, "--key")
    assert out is not None
    pair = keys.make_pair()
    keys.write_pair(out, pair)
    return pair.public


def _tell(
    host_id: str, public_key: str, server_key: str, out: Path | None, as_json: bool, **more: str
) -> None:
    row: dict[str, Any] = {"host_id": host_id, "public_key": public_key, "server_key": server_key}
    if out is not None:
        row["key_file"] = str(out)
    _print(row | more, as_json)


def _print(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(row).decode())
        return
    for name, value in row.items():
        print(clean(f"{name}: {value}".encode("utf-8", "backslashreplace")))


def _say(text: str) -> None:
    print(f"vedette: {clean(text.encode('utf-8', 'backslashreplace'))}", file=sys.stderr)
