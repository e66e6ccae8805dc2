"""Asking the query socket of an aggregator: see aggregator.query_server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec
import yaml
import zmq

from vedette.aggregator.questions import (
    AnyQuestion,
    End,
    Source,
    Tell,
    decode_part,
    encode_question,
)
from vedette.core import wire
from vedette.core.keys import CurveKeys, KeyFileError, check_key, read_pair

KEY_FILE_VARIABLE: Final = "VEDETTE_KEY_FILE"
SERVER_KEY_VARIABLE: Final = "VEDETTE_SERVER_KEY"
CLIENT_VARIABLE: Final = "VEDETTE_CLIENT"
CONNECT_S: Final = 10.0
SILENT_S: Final = 90.0
"""Longer than an aggregator lets a question take, unless it is told to."""
PART_BYTES_MAX: Final = 64 << 20


class RemoteError(Exception):
    """The aggregator cannot be asked; the text says why and names the cure."""


class Client(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of who asks from elsewhere (client.yaml): what stands for --store and its keys."""

    store: str | None = None
    key_file: str | None = None
    server_key: Annotated[str, msgspec.Meta(max_length=40)] | None = None


def client_file() -> Path:
    """Return where the file is looked for."""
    if found := os.environ.get(CLIENT_VARIABLE):
        return Path(found)
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "vedette" / "client.yaml"


def read_client() -> Client:
    """Read that file; nothing is set where there is none. Raises RemoteError."""
    path = client_file()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if CLIENT_VARIABLE in os.environ:
            raise RemoteError(f"{path}: no such file ({CLIENT_VARIABLE})") from None
        return Client()
    except OSError as error:
        raise RemoteError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        client = msgspec.convert(yaml.safe_load(raw) or {}, Client)
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise RemoteError(f"{path}: {error}") from None
    if client.key_file is not None:
        key_file = str(path.parent / Path(client.key_file).expanduser())
        client = msgspec.structs.replace(client, key_file=key_file)
    return client


def is_remote(target: str) -> bool:
    """Tell whether a store's name is a query socket."""
    return target.startswith(("tcp://", "ipc://"))


def keys_for(endpoint: str, client: Client) -> CurveKeys | None:
    """Return the keys to ask with; None: none are set. Raises RemoteError."""
    key_file = os.environ.get(KEY_FILE_VARIABLE) or client.key_file
    server_key = os.environ.get(SERVER_KEY_VARIABLE) or client.server_key
    if key_file is None and server_key is None:
        if wire.is_local(endpoint):
            return None
        raise RemoteError(
            f"{endpoint}: needs keys: set key_file and server_key in {client_file()}, or "
            f"{KEY_FILE_VARIABLE} and {SERVER_KEY_VARIABLE}; `vedette keys init FILE` makes a key "
            "pair, `vedette enroll NAME --role reader` lets it ask"
        )
    if key_file is None or server_key is None:
        raise RemoteError(
            f"{endpoint}: key_file and server_key go together ({client_file()}, or "
            f"{KEY_FILE_VARIABLE} and {SERVER_KEY_VARIABLE})"
        )
    try:
        return CurveKeys(check_key(server_key, "server_key"), read_pair(key_file))
    except KeyFileError as error:
        raise RemoteError(str(error)) from None


@contextlib.contextmanager
def remote(endpoint: str, curve: CurveKeys | None) -> Iterator[Source]:
    """Ask an aggregator elsewhere. Raises RemoteError."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.ipv6 = "[" in endpoint
        socket.set(zmq.MAXMSGSIZE, PART_BYTES_MAX)
        # Kept until there is a connection, so that nothing is sent into the void.
        socket.immediate = True
        if curve is not None:
            socket.curve_serverkey = curve.server_public.encode()
            socket.curve_publickey = curve.own.public.encode()
            socket.curve_secretkey = curve.own.secret.encode()
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise RemoteError(f"{endpoint}: {error}") from None
        number = 0

        def ask(question: AnyQuestion, tell: Tell) -> None:
            nonlocal number
            number += 1
            name = str(number).encode()
            if not socket.poll(int(CONNECT_S * 1000), zmq.POLLOUT):
                raise RemoteError(
                    f"{endpoint}: no connection within {CONNECT_S:g} s: is the address right, does "
                    "its aggregator have `queries.endpoint`, and is this key enrolled there with "
                    "the role reader?"
                )
            socket.send_multipart([name, encode_question(question)])
            heard_s = time.monotonic()
            while True:
                if not socket.poll(1000):
                    if time.monotonic() - heard_s > SILENT_S:
                        raise RemoteError(f"{endpoint}: nothing heard for {SILENT_S:g} s")
                    continue
                heard_s = time.monotonic()
                frames = socket.recv_multipart()
                if len(frames) != 2 or frames[0] != name:
                    continue
                part = decode_part(question, frames[1])
                tell(part)
                if isinstance(part, End):
                    return

        yield Source(ask, None)
    finally:
        context.destroy(linger=0)
