"""Outputs of the aggregator: real files, sockets, an HTTP server that behaves badly on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.aggregator.service import hello, until
from vedette.aggregator.config import Output, parse
from vedette.aggregator.outputs import Outputs, OutputsError, syslog_message
from vedette.aggregator.outputs import alert_item as item_of
from vedette.aggregator.store import Incident, Store
from vedette.core.signal import Signal
from vedette.core.wire import Batch


def signal(seq: int, **changes: Any) -> Signal:
    values: dict[str, Any] = {
        "seq": seq,
        "time_ns": 1_700_000_000_123_456_789 + seq,
        "rule": "r",
        "priority": 4,
        "output": f"number {seq}",
        "fields": {"proc.name": "sshd", "proc.pid": 7},
        "tags": ("t",),
    }
    return Signal(**values | changes)


def commit(store: Store, *signals: Signal) -> None:
    store.commit("a", "boot", Batch(signals=list(signals)), time.time_ns(), 0)


@contextmanager
def opened(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s") as store:
        store.hello(hello("a"), 1, 100)
        yield store


def output(**values: Any) -> Output:
    return Output(**values)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_new_alerts_and_incidents_are_lines_in_falcos_form(tmp_path: Path) -> None:
    path = tmp_path / "alerts"
    with opened(tmp_path) as store:
        commit(store, signal(1))
        outputs = Outputs([output(type="file", path=str(path))], store)
        commit(store, signal(2), signal(3, alert=False), signal(4, priority=2))
        store.write_incident(
            Incident(
                id="ab" * 32,
                sequence="pivot",
                priority=1,
                start_ns=1,
                end_ns=2 * 10**9,
                hosts=["a"],
                complete=True,
                reasons=[],
                details={"tags": ["T1021"], "key": {"x.login.user": "root"}},
            ),
            time.time_ns(),
        )
        until(lambda: len(lines(path)) == 3, "three lines")
        outputs.close()
    # Alerts among themselves are in order of arrival, incidents too.
    first, second, third = sorted(lines(path), key=lambda line: str(line["source"]))
    assert first == {
        "hostname": "name-a",
        "output": "22:13:20.123456791: Warning number 2",
        "output_fields": {"proc.name": "sshd", "proc.pid": 7},
        "priority": "Warning",
        "rule": "r",
        "source": "syscall",
        "tags": ["t"],
        "time": "2023-11-14T22:13:20.123456791Z",
    }
    assert second["priority"] == "Critical"
    assert (third["rule"], third["priority"], third["source"]) == ("pivot", "Alert", "vedette")
    assert third["output_fields"]["x.login.user"] == "root"
    assert third["tags"] == ["T1021"]


def test_each_output_has_its_own_filter(tmp_path: Path) -> None:
    filters: dict[str, dict[str, Any]] = {
        "all": {},
        "urgent": {"priority": "critical"},
        "rule": {"rules": ("q",)},
        "tag": {"tags": ("u", "v")},
        "incidents": {"what": ("incidents",)},
    }
    with opened(tmp_path) as store:
        settings = [
            output(type="file", name=name, path=str(tmp_path / name), **values)
            for name, values in filters.items()
        ]
        outputs = Outputs(settings, store)
        commit(store, signal(1), signal(2, priority=2), signal(3, rule="q"), signal(4, tags=("v",)))
        until(lambda: len(lines(tmp_path / "all")) == 4, "all")
        outputs.close()
        stats = outputs.stats()
    shown = {name: [line["output"][-1] for line in lines(tmp_path / name)] for name in filters}
    assert shown == {
        "all": [*"1234"],
        "urgent": ["2"],
        "rule": ["3"],
        "tag": ["4"],
        "incidents": [],
    }
    assert (stats["output_sent.urgent"], stats["output_filtered.urgent"]) == (1, 3)


def test_a_file_is_rotated_and_no_line_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "alerts"
    with opened(tmp_path) as store:
        outputs = Outputs(
            [output(type="file", path=str(path), rotate_bytes=4096, rotate_keep=100)], store
        )
        for seq in range(1, 101):
            commit(store, signal(seq))
        until(lambda: outputs.stats()["output_sent.0-file"] == 100, "all sent")
        # Somebody else's rotation is seen too.
        path.rename(tmp_path / "taken")
        commit(store, signal(101))
        until(lambda: len(lines(path)) == 1, "a new file")
        outputs.close()
    files = sorted(tmp_path.glob("alerts.*"), key=lambda file: -int(file.suffix[1:]))
    assert len(files) > 3
    assert all(file.stat().st_size <= 4096 for file in files)
    found = [line["output"] for file in [*files, tmp_path / "taken", path] for line in lines(file)]
    assert [text.rpartition(" ")[2] for text in found] == [str(n) for n in range(1, 102)]


class Hook(HTTPServer):
    """Answers with the codes that are asked for, then 200; keeps the bodies that it took."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes
        self.bodies: list[Any] = []
        self.headers: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook = self.server
                assert isinstance(hook, Hook)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = hook.codes.pop(0) if hook.codes else 200
                if code == 200:
                    hook.bodies.append(json.loads(body))
                    hook.headers.append(dict(self.headers))
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


def test_a_webhook_is_tried_again_and_what_it_refuses_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette.aggregator.outputs.RETRY_S", 0.01)
    hook = Hook([503, 500, 200, 400, 200, 301])
    try:
        with opened(tmp_path) as store:
            settings = output(type="webhook", url=hook.url, headers={"X-Token": "secret"})
            outputs = Outputs([settings], store)
            commit(store, *(signal(seq) for seq in range(1, 5)))
            until(lambda: outputs.stats()["output_failed.0-webhook"] == 2, "two failures")
            outputs.close()
            stats = outputs.stats()
    finally:
        hook.close()
    assert [body["output"][-1] for body in hook.bodies] == ["1", "3"]
    assert hook.bodies[0]["output_fields"] == {"proc.name": "sshd", "proc.pid": 7}
    assert (hook.headers[0]["X-Token"], hook.headers[0]["Content-Type"]) == (
        "secret",
        "application/json",
    )
    assert (stats["output_retried.0-webhook"], stats["output_sent.0-webhook"]) == (2, 2)


def test_what_cannot_be_sent_at_all_is_counted_and_ends_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette.aggregator.outputs.RETRY_S", 0.01)
    hook = Hook([])
    try:
        with opened(tmp_path) as store:
            settings = output(type="webhook", url=hook.url, headers={"X-Token": "a\nb"})
            outputs = Outputs([settings], store)
            commit(store, signal(1), signal(2))
            until(lambda: outputs.stats()["output_failed.0-webhook"] == 2, "two failures")
            outputs.close()
    finally:
        hook.close()
    assert hook.bodies == []


def test_an_output_that_is_away_holds_up_no_other_and_its_queue_is_bounded(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    path = tmp_path / "alerts"
    with opened(tmp_path) as store:
        away = output(type="webhook", url=f"http://127.0.0.1:{port}/", queue_max=3)
        outputs = Outputs([away, output(type="file", path=str(path))], store)
        commit(store, *(signal(seq) for seq in range(1, 11)))
        until(lambda: len(lines(path)) == 10, "the other one's lines")
        until(lambda: outputs.stats()["output_dropped.0-webhook"] == 7, "the drops")
        outputs.close(drain_s=0.0)


def test_after_a_restart_outputs_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "alerts"
    settings = [output(type="file", path=str(path))]
    with opened(tmp_path) as store:
        outputs = Outputs(settings, store)
        commit(store, signal(1))
        until(lambda: len(lines(path)) == 1, "the first")
        outputs.close()
        commit(store, signal(2), signal(3))
        outputs = Outputs(settings, store)
        until(lambda: len(lines(path)) == 3, "those that came in between")
        outputs.close()
    assert [line["output"][-1] for line in lines(path)] == [*"123"]


@pytest.mark.parametrize("kind", ["udp", "tcp", "unix"])
def test_syslog_messages_are_as_the_rfc_has_them(tmp_path: Path, kind: str) -> None:
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(
        family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    ) as server:
        server.bind(str(tmp_path / "log") if kind == "unix" else ("127.0.0.1", 0))
        server.settimeout(20)
        if kind == "tcp":
            server.listen()
        address = (
            f"unix://{tmp_path}/log"
            if kind == "unix"
            else f"{kind}://127.0.0.1:{server.getsockname()[1]}"
        )
        with opened(tmp_path) as store:
            settings = output(type="syslog", address=address, facility="local3")
            outputs = Outputs([settings], store)
            commit(store, signal(1, output='a\n"é"', rule='x"]', priority=2))
            if kind == "tcp":
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(20)
                    came = connection.recv(9999)
                    size, _, message = came.partition(b" ")
                    assert int(size) == len(message)
            else:
                message = server.recv(9999)
            outputs.close()
    head, _, text = message.partition(b"\xef\xbb\xbf")
    assert head.decode() == (
        "<154>1 2023-11-14T22:13:20.123456Z name-a vedette - alerts "
        '[vedette@32473 rule="x\\"\\]" tags="t"] '
    )
    assert b"\n" not in message
    assert "é" in text.decode()


def test_hostile_names_stay_within_their_place() -> None:
    from vedette.aggregator.store import StoredSignal

    stored = StoredSignal(
        **{name: getattr(signal(1), name) for name in Signal.__struct_fields__},
        id=1,
        host_id="a",
        hostname="evil host\n<0>1",
        boot_id="b",
        received_ns=0,
        late=False,
    )
    message = syslog_message(item_of(1, stored), "authpriv")
    assert message.split(b" ")[2] == b"evil_host_<0>1"


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as store, pytest.raises(OutputsError, match=r"output 0-file: .*No such"):
        Outputs([output(type="file", path=str(tmp_path / "no" / "file"))], store)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[{type: file}]", "`path` is missing, which type file needs"),
        ("[{type: webhook, url: 'ftp://x'}]", "outputs"),
        ("[{type: syslog, address: 'udp://h', url: 'http://x'}]", "`url` is for type webhook"),
        ("[{type: stdout, priorty: error}]", "did you mean `priority`"),
    ],
)
def test_a_wrong_output_is_named(tmp_path: Path, text: str, reason: str) -> None:
    from vedette.aggregator.config import ConfigError

    with pytest.raises(ConfigError) as caught:
        parse(f"outputs: {text}", tmp_path / "f")
    assert reason in str(caught.value)
