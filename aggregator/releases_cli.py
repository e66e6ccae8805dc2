"""`vedette rules keygen`, `push`, `releases`, `rollback`: rules signed and brought to the fleet."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import sqlalchemy as sa
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vedette.aggregator import releases
from vedette.aggregator.releases import Info, PushError
from vedette.aggregator.store import Store, StoreError
from vedette.aggregator.terminal import ConfigOption
from vedette.aggregator.views import iso_text, shown, span_text, time_text
from vedette.core import releases as signed
from vedette.core.compile import UnsupportedRule, compile_rules
from vedette.core.keys import KeyFileError
from vedette.core.releases import Manifest, Release, ReleaseError, RuleFile
from vedette.core.ruleload import load_any, rule_files

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

EXIT_RUNTIME: Final = 1
EXIT_USAGE: Final = 2
KEY_VARIABLE: Final = "VEDETTE_SIGNING_KEY"
PASSPHRASE_VARIABLE: Final = "VEDETTE_SIGNING_PASSPHRASE"  # noqa: S105 (its name)
POLL_S: Final = 0.25
PIPED_WIDTH: Final = 160
QUIET_S: Final = 15.0
"""Without a change for so long, a person who waits is told what is waited for."""
_SPAN: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s|m|h)")
_SPAN_S: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}

OpenStore = Callable[[str | None, Path | None, bool], contextlib.AbstractContextManager[Store]]

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="The aggregator's store, a SQLite file or postgresql://USER@HOST/NAME; default: what "
        "VEDETTE_STORE says, or the configuration.",
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        "-k",
        metavar="FILE",
        envvar=KEY_VARIABLE,
        help="The signing key (`vedette rules keygen`); a passphrase is asked for, or taken from "
        f"{PASSPHRASE_VARIABLE}.",
    ),
]
StagesOption = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Shares of the hosts that take it one after the other; each stage waits until all of "
        "its hosts report success.",
    ),
]
SettleOption = Annotated[
    str,
    typer.Option(
        metavar="TIME", help="How long a host runs it before it reports success: 30s, 10m, 1h."
    ),
]
ErrorsOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1_000_000,
        metavar="N",
        help="More hosts with errors take it back everywhere; default: "
        f"{signed.ERRORS_PERCENT} % of the stage's hosts and one at least, so that no host alone "
        f"decides; of fewer than {signed.ERRORS_HOSTS_MIN} hosts, none.",
    ),
]
SignalsOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=1_000_000_000,
        metavar="N",
        help="More signals a second, and ten times as many as before, are an error of a host.",
    ),
]
LostOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=1_000_000_000,
        metavar="N",
        help="More kernel events lost while it settles, and ten times as many as before, are an "
        "error.",
    ),
]
NoteOption = Annotated[str, typer.Option(metavar="TEXT", help="What it is for, for people.")]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Show progress until it is everywhere (exit code 0) or taken back (1). Ctrl-C ends "
        "the waiting, nothing else.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
UtcOption = Annotated[bool, typer.Option("--utc", help="Show times in UTC.")]


class _Failure(Exception):
    """A message for the operator, and the exit code."""

    def __init__(self, message: str, code: int = EXIT_RUNTIME) -> None:
        super().__init__(message)
        self.code = code


def _example(*lines: str, codes: str) -> str:
    examples = "\n\n".join(f"`{line}`" for line in lines)
    return f"Examples:\n\n{examples}\n\nExit codes: {codes}"


def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to make; mode 0600.")],
    encrypt: Annotated[
        bool,
        typer.Option(
            "--encrypt", help=f"Ask for a passphrase (or take {PASSPHRASE_VARIABLE}) to encrypt it."
        ),
    ] = False,
) -> None:
    """Make a key to sign rules with, and print its public key.

    The public key goes into the agents' configuration, `rules: {signers: [...]}`: they take rules
    that were signed with it, and no others. The file is needed where rules are signed, never on an
    aggregator or a host. It is PEM (PKCS #8, Ed25519), as `openssl genpkey` makes it, too.
    """
    with _failing():
        word = _passphrase(file, confirm=True) if encrypt else None
        print(signed.make_key(file, word))


def push(
    files: list[Path],
    labels: list[str],
    stages: str,
    settle: str,
    numbers: dict[str, int | None],
    note: str,
    key_file: Path | None,
    number: int | None,
    out: Path | None,
    skip_unknown: bool,
    open_store: Callable[[], contextlib.AbstractContextManager[Store]],
    wait: bool,
    as_json: bool,
) -> None:
    """Do what `vedette rules push` says."""
    given = _given(files)
    if given is not None:
        if labels or out is not None:
            raise _Failure("a release that is signed already is pushed as it is", EXIT_USAGE)
        release, manifest = given
    else:
        settings = {
            "labels": _labels(labels),
            "stages": _stages(stages),
            "settle_s": _seconds(settle, "--settle"),
            "note": note,
            **numbers,
        }
        found, rules = _checked(files, skip_unknown)
        key = _key(key_file)
        if number is None:
            if out is not None:
                raise _Failure(
                    "--out needs --number: one above the last release's (`vedette rules releases`)",
                    EXIT_USAGE,
                )
            with open_store() as store:
                number = releases.last_number(store) + 1
        release = signed.make(found, key, number=number, rules=rules, **settings)
        manifest, _ = signed.check(release)
    if out is not None:
        _write(out, signed.to_bytes(release))
        _say_release(manifest, release, as_json, f"written to {out}")
        return
    with open_store() as store:
        releases.push(store, release, manifest)
    _say_release(manifest, release, as_json, "pushed")
    if wait:
        with open_store() as store:
            _wait(store, manifest.number, as_json, back=False)


def _given(files: list[Path]) -> tuple[Release, Manifest] | None:
    """Return the release that the one file is, if it is one."""
    if len(files) != 1 or files[0].is_dir():
        return None
    path = files[0]
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(signed.PACKED_BYTES_MAX * 2)
        else:
            with path.open("rb") as stream:
                data = stream.read(signed.PACKED_BYTES_MAX * 2)
    except OSError as error:
        raise _Failure(f"{path}: cannot be read: {error.strerror}", EXIT_USAGE) from None
    if str(path) != "-" and not signed.is_release(data):
        return None
    try:
        release = signed.from_bytes(data)
        manifest, found = signed.check(release)
    except ReleaseError as error:
        raise _Failure(f"{path}: {error}", EXIT_USAGE) from None
    del found
    return release, manifest


def _checked(files: list[Path], skip_unknown: bool) -> tuple[list[RuleFile], int]:
    """Read and check rule files as an agent would; return them, and how many rules they have."""
    result = load_any(files, skip_unknown=skip_unknown)
    if result.errors:
        for finding in result.errors:
            _complain(str(finding))
        count = len(result.errors)
        raise _Failure(
            f"nothing is pushed: {count} error{'' if count == 1 else 's'} in the rules", EXIT_USAGE
        )
    for finding in result.warnings:
        _complain(str(finding))
    try:
        compile_rules(
            [rule.condition if rule.enabled else None for rule in result.rules.rules],
            users={},
            groups={},
            hostname=b"",
        )
    except UnsupportedRule as error:
        raise _Failure(
            f"nothing is pushed: the rule tables cannot hold the rules: {error}", EXIT_USAGE
        ) from None
    if not result.rules.rules:
        raise _Failure("nothing is pushed: there are no rules in these files", EXIT_USAGE)
    roots = [(path, root) for root in files for path in rule_files([root])]
    names = signed.named([path for path, _ in roots], [root for _, root in roots])
    made = []
    for (path, _), name in zip(roots, names, strict=True):
        try:
            made.append(RuleFile(name, path.read_bytes()))
        except OSError as error:
            raise _Failure(f"{path}: cannot be read: {error.strerror}", EXIT_USAGE) from None
    return made, len(result.rules.rules)


def _key(path: Path | None) -> Ed25519PrivateKey:
    if path is None:
        raise _Failure(
            f"which key signs it? Give --key FILE, or set {KEY_VARIABLE}; `vedette rules keygen` "
            "makes one",
            EXIT_USAGE,
        )
    return signed.read_key(path, lambda: _passphrase(path, confirm=False))


def _passphrase(path: Path, *, confirm: bool) -> bytes:
    word = os.environ.get(PASSPHRASE_VARIABLE)
    if word is None:
        word = str(
            typer.prompt(
                f"passphrase of {path}", hide_input=True, confirmation_prompt=confirm, err=True
            )
        )
    if not word:
        raise _Failure("an empty passphrase encrypts nothing", EXIT_USAGE)
    return word.encode()


def _labels(texts: Iterable[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise _Failure(
                f"--label {text}: expected NAME=VALUE, such as env=prod; agents have theirs in "
                "`host: {labels: ...}`",
                EXIT_USAGE,
            )
        if labels.setdefault(name, value) != value:
            raise _Failure(f"--label {name}: no host has two values of it", EXIT_USAGE)
    return labels


def _stages(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        shares = ()
    rising = all(a < b for a, b in itertools.pairwise(shares))
    if not shares or not rising or shares[0] <= 0 or shares[-1] != 100:
        raise _Failure(
            f"--stages {text}: expected rising shares that end with all, such as 5%,50%,100%",
            EXIT_USAGE,
        )
    return shares


def _seconds(text: str, option: str) -> float:
    match = _SPAN.fullmatch(text.strip())
    seconds = float(match[1]) * _SPAN_S[match[2]] if match else -1.0
    if not 0 <= seconds <= 86400:
        raise _Failure(f"{option} {text}: expected a time such as 30s, 10m or 1h", EXIT_USAGE)
    return seconds


def _write(path: Path, data: bytes) -> None:
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise _Failure(f"{path}: cannot be written: {error.strerror}") from None


def _say_release(manifest: Manifest, release: Release, as_json: bool, what: str) -> None:
    stream = sys.stderr if what.endswith(" -") else sys.stdout
    if as_json:
        row = _manifest_json(manifest, signed.key_text(release.manifest.key))
        print(msgspec.json.encode(row).decode(), file=stream, flush=True)
        return
    rules = f"{manifest.rules} rules in {manifest.files} files"
    size = f"{manifest.packed_bytes} bytes"
    for_whom = shown(_selector(manifest))
    text = f"release {manifest.number}: {rules}, {size}, for {for_whom}: {what}"
    print(text, file=stream, flush=True)


def _selector(manifest: Manifest) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in manifest.labels.items())
    return f"hosts with {labels}" if labels else "all hosts"


def _errors_text(manifest: Manifest) -> str:
    """Say how many hosts' errors a release survives."""
    if manifest.errors_max is not None:
        return f"up to {manifest.errors_max} hosts'"
    return f"up to {signed.ERRORS_PERCENT} % of the stage's hosts', or one's"


def _manifest_json(manifest: Manifest, signer: str) -> dict[str, Any]:
    return {
        "release": manifest.number,
        "digest": manifest.digest,
        "signer": signer,
        "signed": iso_text(manifest.signed_ns, utc=True),
        "labels": manifest.labels,
        "rules": manifest.rules,
        "files": manifest.files,
        "bytes": manifest.bytes,
        "packed_bytes": manifest.packed_bytes,
        "stages": list(manifest.stages),
        "settle_s": manifest.settle_s,
        "errors_max": manifest.errors_max,
        "signals_per_s_max": manifest.signals_per_s_max,
        "lost_events_max": manifest.lost_events_max,
        "note": manifest.note,
    }


def _info_json(info: Info, *, utc: bool) -> dict[str, Any]:
    return {
        **_manifest_json(info.manifest, info.signer),
        "state": info.state,
        "stage": info.stage,
        "share": info.share,
        "hosts": info.hosts,
        "reason": info.reason or None,
        "pushed": iso_text(info.pushed_ns, utc=utc),
        "changed": iso_text(info.changed_ns, utc=utc),
    }


def _progress(info: Info) -> str:
    hosts = info.hosts
    counts = ", ".join(f"{count} {status}" for status, count in sorted(hosts.items()))
    stages = info.manifest.stages
    where = (
        f"stage {info.stage + 1} of {len(stages)} ({info.share:g} %)"
        if info.state == "rolling"
        else info.state
    )
    return f"release {info.number}: {where}: {counts or 'no host yet'}"


def _wait(store: Store, number: int, as_json: bool, *, back: bool) -> None:
    """Show what becomes of a release until it is everywhere, or (back) nowhere."""
    said: tuple[Any, ...] = ()
    said_s = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            info = releases.find(store, number)
            if info is None:
                raise _Failure(f"release {number} is no longer in the store")
            now = (info.state, info.stage, info.hosts)
            if now != said:
                said, said_s = now, time.monotonic()
                if as_json:
                    print(msgspec.json.encode(_info_json(info, utc=True)).decode(), flush=True)
                else:
                    print(shown(_progress(info)), flush=True)
            elif not as_json and time.monotonic() - said_s > QUIET_S:
                said_s = time.monotonic()
                _complain(f"waiting: {_waiting_for(store, info)}")
            if back:
                if not any(
                    host.release is not None and host.release.number == number
                    for host in store.hosts()
                    if not host.left_ns and not host.silent_since_ns
                ):
                    return
            elif info.state == "complete":
                return
            elif info.state == "withdrawn":
                raise _Failure(f"release {number} was taken back: {info.reason}")
            time.sleep(POLL_S)
    _complain(f"release {number} goes on; `vedette rules releases {number}` shows how it stands")


def _waiting_for(store: Store, info: Info) -> str:
    open_ = [
        item.host_id
        for item in releases.hosts(store, info.number)
        if item.status not in ("confirmed", "withdrawn", *releases.ERRORS)
    ]
    if open_:
        return f"{', '.join(open_[:5])} and others" if len(open_) > 5 else ", ".join(open_)
    takers = [
        host
        for host in store.hosts()
        if host.release is not None and info.manifest.selects(host.labels)
    ]
    if not takers:
        return (
            "no host that it is for takes releases; agents need `rules: {signers: [...]}`, and the "
            "labels"
        )
    return "the aggregator; does it run?"


def _list(store: Store, as_json: bool, utc: bool) -> None:
    found = releases.listed(store)
    if as_json:
        for info in found:
            print(msgspec.json.encode(_info_json(info, utc=utc)).decode())
        return
    if not found:
        _complain("no release has been pushed")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("release", "state", "for", "hosts", "rules", "pushed", "note", "reason"):
        table.add_column(name, overflow="fold")
    styles = {"rolling": "yellow", "complete": "green", "withdrawn": "red"}
    for info in found:
        state: str = info.state
        if state == "rolling":
            state = f"stage {info.stage + 1} of {len(info.manifest.stages)}, {info.share:g} %"
        counts = ", ".join(f"{count} {status}" for status, count in sorted(info.hosts.items()))
        table.add_row(
            str(info.number),
            Text(state, style=styles[info.state]),
            Text(shown(_selector(info.manifest).removeprefix("hosts with "))),
            counts,
            str(info.manifest.rules),
            time_text(info.pushed_ns, utc=utc)[:-4],
            Text(shown(info.manifest.note)),
            Text(shown(info.reason)),
        )
    _console().print(table)


def _show(store: Store, number: int, as_json: bool, utc: bool) -> None:
    info = releases.find(store, number)
    if info is None:
        raise _Failure(f"no release {number}; `vedette rules releases` lists them")
    names = {host.host_id: host.hostname for host in store.hosts()}
    rows = releases.hosts(store, number)
    if as_json:
        found = _info_json(info, utc=utc)
        found["host_states"] = [
            {
                "host": names.get(item.host_id, ""),
                "host_id": item.host_id,
                "status": item.status,
                "reason": item.reason or None,
                "offered": iso_text(item.offered_ns, utc=utc),
                "changed": iso_text(item.changed_ns, utc=utc),
            }
            for item in rows
        ]
        print(msgspec.json.encode(found).decode())
        return
    manifest = info.manifest
    facts = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("release", _progress(info).removeprefix("release ")),
        ("reason", info.reason),
        ("note", manifest.note),
        ("for", _selector(manifest)),
        ("rules", f"{manifest.rules} in {manifest.files} files, {manifest.packed_bytes} bytes"),
        ("digest", manifest.digest),
        ("signed", f"{time_text(manifest.signed_ns, utc=utc)} by {info.signer}"),
        ("stages", ", ".join(f"{share:g} %" for share in manifest.stages)),
        (
            "errors",
            f"{_errors_text(manifest)}; a host's are more than "
            f"{manifest.signals_per_s_max} signals a second or {manifest.lost_events_max} events "
            f"lost within {span_text(int(manifest.settle_s * 1e9))}",
        ),
    ):
        if value:
            facts.add_row(Text(name, style="dim"), Text(shown(value)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("host", "status", "since", "reason"):
        table.add_column(name, overflow="fold")
    for item in rows:
        style = {"confirmed": "green", "failed": "red", "refused": "red"}.get(item.status, "yellow")
        table.add_row(
            Text(shown(names.get(item.host_id, item.host_id)), style="bold"),
            Text(item.status, style=style),
            time_text(item.changed_ns, utc=utc)[:-4],
            Text(shown(item.reason)),
        )
    console = _console()
    console.print(facts)
    console.print(table)


def _roll_back(
    store: Store, number: int | None, to: int | None, key_file: Path | None, as_json: bool
) -> int:
    """Take a release back, or push an older one's rules again; return the number to wait for."""
    if to is not None:
        if number is not None:
            raise _Failure("give a release to take back, or --to, not both", EXIT_USAGE)
        old = releases.content(store, to)
        if old is None:
            raise _Failure(f"no release {to}; `vedette rules releases` lists them")
        manifest, found = signed.check(old)
        for info in releases.listed(store):
            if info.state == "rolling":
                releases.withdraw(store, info.number, f"rolled back to the rules of release {to}")
        rest = {
            name: getattr(manifest, name)
            for name in ("labels", "settle_s", "errors_max", "signals_per_s_max", "lost_events_max")
        }
        again = signed.make(
            found,
            _key(key_file),
            number=releases.last_number(store) + 1,
            rules=manifest.rules,
            stages=(100.0,),
            note=f"the rules of release {to} again",
            **rest,
        )
        fresh, _ = signed.check(again)
        releases.push(store, again, fresh)
        _say_release(fresh, again, as_json, f"pushed, the rules of release {to}")
        return fresh.number
    if number is None:
        standing = [info.number for info in releases.listed(store) if info.state != "withdrawn"]
        if not standing:
            raise _Failure("there is no release to take back; `vedette rules releases` lists them")
        number = standing[-1]
    user = f"taken back by an operator, {dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    if releases.find(store, number) is None:
        raise _Failure(f"no release {number}; `vedette rules releases` lists them")
    if not releases.withdraw(store, number, user):
        raise _Failure(f"release {number} has been taken back before")
    if as_json:
        print(msgspec.json.encode({"release": number, "state": "withdrawn"}).decode(), flush=True)
    else:
        print(
            f"release {number} is taken back: its hosts go back to what they had before", flush=True
        )
    return number


def mount(rules_app: typer.Typer, open_store: OpenStore) -> None:
    """Add the commands to `vedette rules`."""
    rules_app.command(
        "keygen",
        epilog=_example(
            "vedette rules keygen ~/vedette-signing.pem --encrypt", codes="0 done, 1 it failed."
        ),
    )(keygen)

    @rules_app.command(
        "push",
        epilog=_example(
            "vedette rules push rules local.yaml --key signing.pem --wait",
            "vedette rules push rules -k signing.pem --label env=prod --stages 5%,50%,100%",
            "vedette rules push rules -k signing.pem --number 8 --out - "
            "| ssh aggregator vedette rules push -",
            codes="0 done, 1 it failed or (--wait) was taken back, 2 usage, or the rules have "
            "errors.",
        ),
    )
    def push_command(
        files: Annotated[
            list[Path],
            typer.Argument(
                metavar="FILE",
                help="Rule files or folders, in their order; or one release that `--out` wrote "
                "(`-`: from the standard input).",
            ),
        ],
        key_file: KeyOption = None,
        label: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME=VALUE", help="Only for hosts with this label; repeatable: with all."
            ),
        ] = None,
        stages: StagesOption = "5%,50%,100%",
        settle: SettleOption = "60s",
        errors_max: ErrorsOption = None,
        signals_per_s_max: SignalsOption = signed.SIGNALS_PER_S_MAX,
        lost_events_max: LostOption = signed.LOST_EVENTS_MAX,
        note: NoteOption = "",
        number: Annotated[
            int | None,
            typer.Option(
                min=1, metavar="N", help="The release's number; default: one above the last one's."
            ),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE",
                help="Only sign, and write the release to FILE (`-`: the standard output); it is "
                "pushed from there later, where no key is.",
            ),
        ] = None,
        skip_unknown: Annotated[
            bool,
            typer.Option(
                "--skip-unknown",
                help="Leave out rules that need unknown fields or events; the agents need "
                "`rules: {skip_unknown: true}` for it.",
            ),
        ] = False,
        store_path: StoreOption = None,
        config_file: ConfigOption = None,
        wait: WaitOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Check rules, sign them, and bring them to the fleet's agents, in stages.

        Agents that name the signer's public key verify the release, compile it beside the rules
        that run, and put it in force. A host goes back by itself where it cannot be compiled, makes
        too many signals, or the agent does not survive it; the whole fleet goes back where more
        hosts do than --errors-max allows. Hosts that are away take it when they come again.
        """
        with _failing():
            push(
                files,
                label or [],
                stages,
                settle,
                {
                    "errors_max": errors_max,
                    "signals_per_s_max": signals_per_s_max,
                    "lost_events_max": lost_events_max,
                },
                note,
                key_file,
                number,
                out,
                skip_unknown,
                lambda: open_store(store_path, config_file, True),
                wait,
                as_json,
            )

    @rules_app.command(
        "releases",
        epilog=_example(
            "vedette rules releases",
            "vedette rules releases 7",
            "vedette rules releases --json | jq 'select(.state == \"rolling\")'",
            codes="0 done, 1 no such release, 2 usage.",
        ),
    )
    def releases_command(
        number: Annotated[
            int | None,
            typer.Argument(metavar="RELEASE", help="Show one, and what became of it per host."),
        ] = None,
        store_path: StoreOption = None,
        config_file: ConfigOption = None,
        as_json: JsonOption = False,
        utc: UtcOption = False,
    ) -> None:
        """List the releases of rules: for whom, in which stage, on how many hosts."""
        with _failing(), open_store(store_path, config_file, False) as store:
            if number is None:
                _list(store, as_json, utc)
            else:
                _show(store, number, as_json, utc)

    @rules_app.command(
        "rollback",
        epilog=_example(
            "vedette rules rollback",
            "vedette rules rollback 7 --wait",
            "vedette rules rollback --to 5 --key signing.pem --wait",
            codes="0 done, 1 it failed, 2 usage.",
        ),
    )
    def rollback_command(
        number: Annotated[
            int | None,
            typer.Argument(metavar="RELEASE", help="Which; default: the newest that stands."),
        ] = None,
        to: Annotated[
            int | None,
            typer.Option(
                "--to",
                min=1,
                metavar="RELEASE",
                help="Push the rules of this older release again, as a new one for the hosts that "
                "it was for; all at once. Needs the signing key.",
            ),
        ] = None,
        key_file: KeyOption = None,
        store_path: StoreOption = None,
        config_file: ConfigOption = None,
        wait: WaitOption = False,
        as_json: JsonOption = False,
    ) -> None:
        """Take a release back: its hosts go back to what each had before.

        That needs no key: the withdrawal was signed together with the release.
        """
        with _failing(), open_store(store_path, config_file, True) as store:
            waited = _roll_back(store, number, to, key_file, as_json)
            if wait:
                _wait(store, waited, as_json, back=to is None)


@contextmanager
def _failing() -> Iterator[None]:
    """Turn what cannot be done into a message and an exit code."""
    try:
        yield
    except _Failure as error:
        _complain(str(error))
        raise typer.Exit(error.code) from None
    except sa.exc.DBAPIError as error:
        _complain(f"the store takes nothing: {str(error.orig).strip()}; try it again")
        raise typer.Exit(EXIT_RUNTIME) from None
    except msgspec.DecodeError as error:
        _complain(f"the store has a release written by another version; use its commands: {error}")
        raise typer.Exit(EXIT_RUNTIME) from None
    except (KeyFileError, PushError, ReleaseError, StoreError) as error:
        _complain(str(error))
        raise typer.Exit(EXIT_RUNTIME) from None


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def _complain(text: str) -> None:
    for line in text.splitlines():
        print(f"vedette: {shown(line)}", file=sys.stderr, flush=True)
