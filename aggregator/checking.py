"""What an aggregator's configuration names, looked at without starting anything.

`vedette aggregator check` tells all of it at once; the service would stop at the first.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vedette.aggregator.config import Config, Output, exposed
from vedette.aggregator.store import Store, StoreError, StoreOutdated, is_url
from vedette.core.keys import AGENT, READER, KeyFileError, read_allow_list, read_pair
from vedette.core.sequence import Sequence
from vedette.core.sequenceload import load_sequences


class Problem(NamedTuple):
    """Why the service would not start, or not do what a key asks for.

    key  of the configuration, such as `listen.key_file`; empty where the message says the place
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class Checked(NamedTuple):
    """What a configuration comes to.

    outputs, hosts, readers  their numbers; hosts and readers are None without keys
    store                    its path, or its URL without a password
    migrates                 the service will bring the store to its own version
    """

    problems: tuple[Problem, ...]
    sequences: tuple[Sequence, ...]
    outputs: int
    hosts: int | None
    readers: int | None
    store: str
    migrates: bool


def check(config: Config) -> Checked:
    """Look at what a configuration names: keys, files, folders, the store. Raises nothing.

    It is seen with the rights of who asks, which may be more than the service has. The store is
    opened for reading, and nothing is made.
    """
    problems: list[Problem] = []
    hosts = readers = None
    listen, queries = config.listen, config.queries
    for key, endpoint in (
        ("listen.endpoint", listen.endpoint),
        ("queries.endpoint", queries.endpoint),
    ):
        if endpoint is not None and (reason := exposed(listen, endpoint)):
            problems.append(Problem(key, reason))
    if listen.key_file is not None and listen.allow_list is not None:
        try:
            read_pair(listen.key_file)
        except KeyFileError as error:
            problems.append(Problem("listen.key_file", str(error)))
        try:
            roles = [one.role for one in read_allow_list(listen.allow_list).values()]
            hosts, readers = roles.count(AGENT), roles.count(READER)
        except KeyFileError as error:
            problems.append(Problem("listen.allow_list", str(error)))
    found = load_sequences(Path(name) for name in config.sequences.files)
    problems += [Problem("", str(error)) for error in found.errors]
    for number, output in enumerate(config.outputs):
        problems += (Problem(f"outputs[{number}].{key}", text) for key, text in _of_output(output))
    store, migrates, reason = _of_store(config)
    if reason:
        problems.append(Problem("store", reason))
    return Checked(
        tuple(problems),
        found.sequences,
        len(config.outputs),
        hosts,
        readers,
        store,
        migrates,
    )


def _of_output(output: Output) -> Iterator[tuple[str, str]]:
    if output.path is not None and (reason := _unwritable(Path(output.path))):
        yield "path", reason
    if output.ca_file is not None:
        try:
            ssl.create_default_context(cafile=output.ca_file)
        except ssl.SSLError:
            yield "ca_file", f"{output.ca_file}: has no certificate in PEM's form"
        except OSError as error:
            yield "ca_file", f"{output.ca_file}: cannot be read: {error.strerror}"


def _of_store(config: Config) -> tuple[str, bool, str | None]:
    """Return the store's name, whether it is older than this Vedette, and what is wrong."""
    target = config.store.target
    if not is_url(target):
        path = Path(target)
        if not path.exists():
            return target, False, _unwritable(path)
        if path.is_file() and (reason := _unwritable(path)):
            return target, False, reason
    try:
        with Store.open(target, read_only=True) as store:
            return store.name, False, None
    except StoreOutdated as error:
        return error.store, True, None
    except StoreError as error:
        return target if not is_url(target) else "", False, str(error)


def _unwritable(path: Path) -> str | None:
    """Say why a file, which may be missing yet, cannot be written; None: it can."""
    if path.is_dir():
        return f"{path}: is a folder; name a file in it"
    if not path.parent.is_dir():
        return f"{path}: folder {path.parent} does not exist; make it first"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path}: cannot be written by this user"
    return None
