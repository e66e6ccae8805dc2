"""The agent as a process of its own, on real kernel events of a cgroup of the test's own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import zmq

from tests.aggregator.service import metrics_url
from vedette.agent import config, pipeline
from vedette.agent.outputs import alert_line
from vedette.agent.replay import Replay
from vedette.core import wire
from vedette.core.capturefile import (
    Batch,
    CaptureFileError,
    CaptureReader,
    End,
    Loss,
    Snapshot,
)
from vedette.core.records import TYPE_NAMES, iter_records
from vedette.core.signal import Signal
from vedette.core.twin import Twin

pytestmark = pytest.mark.bpf

WaitUntil = Callable[[Callable[[], bool]], None]
COMMAND = [sys.executable, "-c", "from vedette.agent.cli import main; main()"]


def rules(secret: str, name: str = "Reads a secret") -> str:
    return f"""
- rule: {name}
  desc: a file in the secret folder is opened
  condition: evt.type in (open, openat) and fd.name startswith {secret}/
  output: "%proc.name read %fd.name, below %proc.pname"
  priority: WARNING
  tags: [files]
- rule: Runs something
  desc: food for sequences
  condition: evt.type = execve and evt.res = SUCCESS
  output: "%proc.exepath"
  priority: DEBUG
  alert: false
"""


class Agent:
    """An agent's process, its files, and a shell in the cgroup that it watches."""

    def __init__(self, folder: Path, cgroup: Path, wait_until: WaitUntil, extra: str = "") -> None:
        self.folder = folder
        self.cgroup = cgroup
        self.wait_until = wait_until
        self.secret = folder / "secret"
        self.secret.mkdir()
        self.rules = folder / "rules.yaml"
        self.rules.write_text(rules(str(self.secret)))
        self.alerts = folder / "alerts.json"
        self.log = folder / "log"
        self.config = folder / "agent.yaml"
        self.config.write_text(
            f"host: {{id: test-host, name: test.example}}\n"
            f"capture: {{scope: {cgroup}, ring_bytes: 1048576, wakeup_bytes: 65536}}\n"
            "rules: {files: [rules.yaml]}\n"
            "outputs: [{type: file, path: alerts.json}]\n"
            "heartbeat_s: 0.2\n" + extra
        )
        self.shell = subprocess.Popen(
            ["sh", "-c", f"echo $$ > {cgroup}/cgroup.procs; cd {folder}; exec sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.does("true")  # answers, so it is in the cgroup
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, *arguments: str, stdout: int | None = None, below: Sequence[str | Path] = ()
    ) -> None:
        with self.log.open("ab") as log:
            command = [*below, *COMMAND, *arguments]
            self.process = subprocess.Popen(command, stderr=log, stdout=stdout)
        self.logs("watching", "capturing")

    def logs(self, *messages: str) -> None:
        def said() -> bool:
            assert self.process is not None
            text = self.log.read_text()
            found = any(message in text for message in messages)
            assert found or self.process.poll() is None, text
            return found

        self.wait_until(said)

    def does(self, command: str) -> None:
        """Have the shell in the cgroup run a command, and wait for its end."""
        assert self.shell.stdin is not None and self.shell.stdout is not None
        self.shell.stdin.write(f"{command}\necho done\n".encode())
        self.shell.stdin.flush()
        assert self.shell.stdout.readline() == b"done\n"

    def printed(self) -> list[dict[str, object]]:
        text = self.alerts.read_bytes() if self.alerts.exists() else b""
        # What stands after the last newline is still being written.
        return [json.loads(line) for line in text.split(b"\n")[:-1]]

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the agent; a stop takes at most two seconds."""
        assert self.process is not None
        self.process.send_signal(number)
        assert self.process.wait(2) == 0, self.log.read_text()

    def close(self) -> None:
        for process in (self.process, self.shell):
            if process is not None:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()


@pytest.fixture
def make_agent(
    tmp_path: Path, cgroup: Path, wait_until: WaitUntil
) -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(extra: str = "") -> Agent:
        made.append(Agent(tmp_path, cgroup, wait_until, extra))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


def read_secrets(agent: Agent, count: int) -> None:
    # Its error output is turned away before, not for the loop: that would make events at its end.
    loop = f"i=0; while [ $i -lt {count} ]; do true < secret/$i; i=$((i+1)); done"
    agent.does(f"exec 2> /dev/null; {loop}")


def test_alerts_of_real_events_and_a_stop_that_loses_none(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.start("run", "--config", str(agent.config))
    (agent.secret / "key").touch()
    agent.does("cat secret/key")
    agent.wait_until(lambda: bool(agent.printed()))
    alert = agent.printed()[0]
    assert alert["rule"] == "Reads a secret"
    assert alert["priority"] == "Warning"
    assert alert["hostname"] == "test.example"
    assert str(alert["output"]).endswith(f"cat read {agent.secret}/key, below sh")
    fields = alert["output_fields"]
    assert isinstance(fields, dict)
    assert fields["proc.ppid"] == agent.shell.pid
    assert fields["proc.cmdline"] == "cat secret/key"
    assert fields["proc.exepath"].endswith("/cat")
    assert fields["fd.name"] == f"{agent.secret}/key"
    assert fields["user.uid"] == os.geteuid()
    read_secrets(agent, 211)
    agent.stop()
    names = [line["output_fields"]["fd.name"] for line in agent.printed()]  # type: ignore[index]
    assert names[1:] == [f"{agent.secret}/{number}" for number in range(211)]
    assert {line["rule"] for line in agent.printed()} == {"Reads a secret"}, "no signal-only rule"


def test_hangup_reloads_rules_and_reopens_files_and_bad_rules_change_nothing(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent()
    agent.start("run", "--config", str(agent.config))
    assert agent.process is not None

    agent.rules.write_text(rules(str(agent.secret), "Another name"))
    agent.process.send_signal(signal.SIGHUP)
    agent.logs('msg="rules reloaded"')
    assert "compiled=false" in agent.log.read_text().lower(), "only a name changed"
    read_secrets(agent, 1)
    agent.wait_until(lambda: len(agent.printed()) == 1)

    agent.rules.write_text(rules(str(agent.secret)).replace("evt.type = execve", "evt.type ="))
    agent.process.send_signal(signal.SIGHUP)
    agent.logs("reload failed, the rules in force stay")
    assert "rules.yaml:10:" in agent.log.read_text()
    read_secrets(agent, 1)
    agent.wait_until(lambda: len(agent.printed()) == 2)

    agent.config.write_text(agent.config.read_text().replace("heartbeat_s", "heartbeats"))
    agent.alerts.rename(agent.folder / "rotated")
    agent.log.write_text("")
    agent.process.send_signal(signal.SIGHUP)
    agent.wait_until(agent.alerts.exists)
    agent.wait_until(lambda: "heartbeats: unknown key" in agent.log.read_text())
    read_secrets(agent, 1)
    agent.wait_until(lambda: len(agent.printed()) == 1)
    agent.stop()
    old = [json.loads(line) for line in (agent.folder / "rotated").read_bytes().splitlines()]
    assert [line["rule"] for line in [*old, *agent.printed()]] == ["Another name"] * 3


REFUSES = """
import sys
from pathlib import Path
from vedette.bpf import capture

folder = Path(sys.argv[-1]).parent
want, pass_all = capture.Capture.want, capture.Capture.pass_all

def refusing(self, types, drops=None):
    want(self, types, drops)
    if "mkdir" in types:
        raise capture.CaptureError("the kernel refuses: mkdir")

def passing(self):
    if (folder / "refuse").exists():
        raise capture.CaptureError("the kernel refuses: all")
    pass_all(self)

capture.Capture.want, capture.Capture.pass_all = refusing, passing
from vedette.agent.cli import main
main()
"""


def test_rules_that_capture_cannot_follow_are_told_as_such_the_kernels_refusal_is_a_fake(
    make_agent: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.COMMAND", [*COMMAND[:2], REFUSES])
    agent = make_agent("metrics: {listen: '127.0.0.1:0'}\n")
    agent.start("run", "--config", str(agent.config))
    assert agent.process is not None
    secret, url = str(agent.secret), metrics_url(agent.log.read_text())

    def reloads(text: str, message: str) -> str:
        agent.rules.write_text(text)
        agent.log.write_text("")
        assert agent.process is not None
        agent.process.send_signal(signal.SIGHUP)
        agent.logs(f'msg="{message}"')
        return agent.log.read_text()

    def metric(name: str) -> float:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next(float(x.split()[1]) for x in lines if x.startswith(f"vedette_agent_{name} "))

    def health() -> str:
        try:
            with urllib.request.urlopen(f"{url}/healthz") as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read().decode())

    # The kernel goes on dropping what the old rules do not need: these stay in force.
    (agent.folder / "refuse").touch()
    said = reloads(rules(secret, "Another name"), "reload failed, the rules in force stay")
    assert "capture cannot follow the rules: the kernel refuses: all" in said
    agent.wait_until(lambda: metric("rules_failed_total") == 1)
    assert (metric("rules_uncaptured"), health()) == (0, "ok\n")
    read_secrets(agent, 1)
    agent.wait_until(lambda: len(agent.printed()) == 1)
    assert agent.printed()[0]["rule"] == "Reads a secret"
    assert "rules reloaded" not in agent.log.read_text()
    (agent.folder / "refuse").unlink()

    # New rules are in force, but of some of their events nothing is seen.
    more = rules(secret, "Another name").replace("evt.type = execve", "evt.type = mkdir")
    said = reloads(more, "rules in force, not captured in full")
    assert 'msg="some events of the rules do not come"' in said
    agent.wait_until(lambda: metric("rules_uncaptured") == 1)
    assert metric("rules_failed_total") == 2
    assert "capture cannot follow the rules: the kernel refuses: mkdir" in health()
    read_secrets(agent, 1)
    agent.wait_until(lambda: len(agent.printed()) == 2)
    assert agent.printed()[1]["rule"] == "Another name"
    assert "rules reloaded" not in agent.log.read_text()

    reloads(rules(secret), "rules reloaded")
    agent.wait_until(lambda: metric("rules_reloaded_total") == 1)
    assert (metric("rules_uncaptured"), health()) == (0, "ok\n")
    agent.stop()


def test_rules_that_ask_for_standard_descriptors_find_what_changed_before_them(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent()
    recording = agent.folder / "run.vcap"
    agent.start("run", "--config", str(agent.config), "--record", str(recording))
    assert agent.process is not None
    (agent.folder / "marked").touch()
    agent.does("exec 2> early; : < marked")  # nobody asks for it yet
    agent.rules.write_text("""
- rule: Marked
  desc: a file is opened by who writes its errors there
  condition: >
    evt.type in (open, openat) and fd.name endswith /marked and proc.stdin.type = pipe
    and proc.stderr.name endswith ly
  output: "%proc.stderr.name"
  priority: NOTICE
""")
    agent.process.send_signal(signal.SIGHUP)
    agent.logs('msg="rules reloaded"')
    agent.does(": < marked")
    # /proc is asked when the event comes to its turn.
    agent.wait_until(lambda: len(agent.printed()) == 1)
    agent.does("exec 2> other; : < marked")
    agent.does("exec 2> slowly; : < marked")
    agent.wait_until(lambda: len(agent.printed()) == 2)
    agent.does("exec 2>&-; : < marked")
    agent.stop()
    names = [line["output_fields"]["proc.stderr.name"] for line in agent.printed()]  # type: ignore[index]
    assert names == [f"{agent.folder}/early", f"{agent.folder}/slowly"]
    argv = [*COMMAND, "replay", str(recording), "--rules", str(agent.rules)]
    replayed = subprocess.run(argv, capture_output=True, check=True).stdout
    again = [
        json.loads(line)["output_fields"]["proc.stderr.name"] for line in replayed.splitlines()
    ]
    assert again[-2:] == names


JAVA = """
import os, socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
taken, _ = server.accept()
taken.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
taken.sendall(b"\\xca\\xfe\\xba\\xbe and so on")
while b"on" not in client.recv(4096):
    pass
"""


def test_a_class_file_that_java_downloads_is_told_with_its_data(
    make_agent: Callable[..., Agent],
) -> None:
    """The condition is that of Falco's rule "Java Process Class File Download"."""
    agent = make_agent()
    agent.rules.write_text("""
- rule: Java Process Class File Download
  condition: >
    evt.type in (read, recvfrom, recvmsg) and fd.type in (ipv4, ipv6) and proc.name = java
    and evt.buffer bcontains cafebabe
  output: "%evt.type %fd.l4proto %evt.buflen %evt.buffer"
  priority: CRITICAL
""")
    (agent.folder / "java").symlink_to(os.path.realpath(sys.executable))
    (agent.folder / "code.py").write_text(JAVA)
    agent.start("run", "--config", str(agent.config))
    agent.does("./java -IS code.py; cat code.py > /dev/null")
    agent.wait_until(lambda: len(agent.printed()) > 0)
    agent.stop()
    (alert,) = agent.printed()
    fields = alert["output_fields"]
    assert isinstance(fields, dict)
    assert fields["evt.buffer"].endswith("\\xca\\xfe\\xba\\xbe and so on")
    assert fields["proc.name"] == "java" and "127.0.0.1" in fields["fd.name"]
    text = fields["evt.buffer"]
    assert str(alert["output"]).endswith(f"recvfrom tcp {fields['evt.buflen']} {text}")


def test_a_capture_until_a_match_has_the_data_that_the_rule_asks_about(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent()
    agent.rules.write_text("""
- rule: Reads a word
  condition: evt.type = read and fd.name endswith /word and evt.buffer contains secret
  output: "%evt.buffer"
  priority: INFO
""")
    (agent.folder / "word").write_text("a secret\n")
    target = agent.folder / "found.vcap"
    agent.start(
        "capture", "-o", str(target), "-c", str(agent.config), "--on", "Reads *", "--after", "0.2"
    )  # fmt: skip
    agent.does("head -c 99 word > /dev/null")
    agent.wait_until(lambda: "recording a match" in agent.log.read_text())
    agent.stop()
    (path,) = agent.folder.glob("found-*.vcap")
    replayed = subprocess.run(
        [*COMMAND, "replay", str(path), "-r", str(agent.rules)], check=True, capture_output=True
    )
    alerts = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert [alert["output_fields"]["evt.buffer"] for alert in alerts] == ["a secret\\x0a"]


def test_hangup_switches_rules_without_compiling(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    agent.start("run", "--config", str(agent.config))
    assert agent.process is not None
    whole = agent.config.read_text()
    for section, printed in (
        ("disabled: ['Reads *']", 0),
        ("disabled: ['*'], enabled: [Reads a secret]", 1),
    ):
        agent.log.write_text("")
        agent.config.write_text(whole.replace("rules: {", "rules: {" + section + ", "))
        assert section in agent.config.read_text()
        agent.process.send_signal(signal.SIGHUP)
        agent.logs('msg="rules reloaded"')
        assert "compiled=false" in agent.log.read_text().lower()
        read_secrets(agent, 1)
        agent.wait_until(lambda printed=printed: len(agent.printed()) == printed)
    agent.stop()
    assert len(agent.printed()) == 1, "what was read while the rule was off was not reported"


def test_a_recorded_run_replays_byte_for_byte(
    make_agent: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    record = agent.folder / "run.vcap"
    agent.start("run", "--config", str(agent.config), "--record", str(record))
    agent.does("cd secret; cat x; (cd ..; cat secret/y) ; true 2>/dev/null")
    agent.does("sh -c 'cat ../secret/z; exit 3'")
    read_secrets(agent, 13)
    agent.stop()
    assert record.stat().st_mode & 0o077 == 0
    live = agent.alerts.read_bytes()
    assert live.count(b"\n") >= 3
    replay = subprocess.run(
        [*COMMAND, "replay", str(record), "--config", str(agent.config)],
        capture_output=True,
        check=True,
    )
    assert replay.stdout == live

    # The engine's twin, which is nothing but obvious, says the same of the recording.
    lines: list[bytes] = []
    monkeypatch.setattr(pipeline, "Engine", Twin)
    loaded = pipeline.load(config.Rules(files=(str(agent.rules),)))
    with record.open("rb") as stream:
        Replay(CaptureReader(stream), loaded.rules).run(
            lambda signals: lines.extend(
                alert_line(item, "test.example") for item in signals if item.alert
            )
        )
    assert b"".join(lines) == live

    whole = record.read_bytes()
    cut = agent.folder / "cut.vcap"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    replay = subprocess.run(
        [*COMMAND, "replay", str(cut), "--rules", str(agent.rules)], capture_output=True
    )
    assert replay.returncode == 3
    assert live.startswith(replay.stdout)
    assert b"cut short" in replay.stderr and b"Traceback" not in replay.stderr


def test_a_recorded_run_that_lost_events_replays_byte_for_byte(
    make_agent: Callable[..., Agent],
) -> None:
    """After a loss the engine asks /proc again; the answers are in the recording."""
    agent = make_agent()
    text = agent.config.read_text().replace("ring_bytes: 1048576", "ring_bytes: 65536")
    agent.config.write_text(text.replace("wakeup_bytes: 65536", "wakeup_bytes: 32768"))
    record = agent.folder / "run.vcap"
    agent.start("run", "--config", str(agent.config), "--record", str(record))
    assert agent.process is not None
    agent.does("cat secret/before")
    agent.process.send_signal(signal.SIGSTOP)
    read_secrets(agent, 1999)
    agent.process.send_signal(signal.SIGCONT)
    agent.logs("events were lost")
    agent.does("cat secret/after; (cd secret; cat later)")
    agent.stop()
    with record.open("rb") as stream:
        blocks = list(CaptureReader(stream))
    loss = next(at for at, block in enumerate(blocks) if isinstance(block, Loss))
    later = [block for block in blocks[loss:] if isinstance(block, Batch)]
    assert agent.shell.pid in [pid for block in later for pid, _ in block.answers]
    live = agent.alerts.read_bytes()
    assert b"/secret/later" in live
    replay = subprocess.run(
        [*COMMAND, "replay", str(record), "--config", str(agent.config)],
        capture_output=True,
        check=True,
    )
    assert replay.stdout == live


def test_a_stop_waits_for_nobody_who_does_not_listen(make_agent: Callable[..., Agent]) -> None:
    """Neither for an aggregator that is not there nor for a pipe that nobody reads."""
    agent = make_agent("ship: {endpoint: 'ipc:///nowhere/socket'}\n")
    agent.config.write_text(
        agent.config.read_text().replace("outputs: [", "outputs: [{type: stdout}, ")
    )
    agent.start("run", "--config", str(agent.config), stdout=subprocess.PIPE)
    read_secrets(agent, 499)
    agent.wait_until(lambda: len(agent.printed()) == 499)
    agent.stop()
    log = agent.log.read_text()
    assert 'msg="alerts were left unwritten" output=stdout' in log
    assert 'msg="signals were left unsent" kept=499' in log


def test_a_stop_during_the_start(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    with agent.log.open("ab") as log:
        agent.process = subprocess.Popen(
            [*COMMAND, "run", "--config", str(agent.config)], stderr=log
        )
    agent.logs("msg=starting")
    agent.stop()
    assert "stopped before capture began" in agent.log.read_text()


def test_a_configuration_that_can_show_nothing_is_warned_about(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent()
    agent.config.write_text(
        f"capture: {{scope: {agent.cgroup}, ring_bytes: 65536, wakeup_bytes: 32768}}\n"
    )
    agent.start("run", "--config", str(agent.config))
    agent.stop()
    assert "no rules are loaded" in agent.log.read_text()
    assert "signals go nowhere" in agent.log.read_text()


def test_signals_are_shipped_those_that_are_no_alerts_too(
    make_agent: Callable[..., Agent],
) -> None:
    """The other end is a ROUTER socket that speaks the protocol by hand."""
    agent = make_agent("ship: {endpoint: 'ipc://SOCKET'}\n")
    endpoint = f"ipc://{agent.folder}/wire"
    agent.config.write_text(agent.config.read_text().replace("ipc://SOCKET", endpoint))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.rcvtimeo = 10_000
        router.bind(endpoint)
        agent.start("run", "--config", str(agent.config))
        signals: list[Signal] = []
        beats: list[wire.Heartbeat] = []

        def serve() -> wire.Message:
            peer, frame = router.recv_multipart()
            message = wire.decode(frame)
            if isinstance(message, wire.Hello):
                assert (message.host_id, message.hostname) == ("test-host", "test.example")
                answer: wire.Message = wire.Welcome(
                    protocol=wire.PROTOCOL,
                    committed_seq=0,
                    credit=1000,
                    message_bytes_max=wire.MESSAGE_BYTES_MIN,
                )
                router.send_multipart([peer, wire.encode(answer)])
            elif isinstance(message, wire.Batch | wire.Heartbeat):
                if isinstance(message, wire.Batch):
                    signals.extend(message.signals)
                else:
                    beats.append(message)
                seq = signals[-1].seq if signals else 0
                router.send_multipart([peer, wire.encode(wire.Ack(committed_seq=seq, credit=1000))])
            return message

        assert isinstance(serve(), wire.Hello)
        agent.does("cat secret/a")
        while len(signals) < 2:
            serve()
        last_ns = signals[-1].time_ns
        while not (
            beats
            and beats[-1].complete_until_ns > last_ns
            and beats[-1].counters.get("signals.Reads a secret") == 1
        ):
            serve()
        assert beats[-1].lost_events == 0
        assert beats[-1].counters["capture.submitted"] >= len(signals)
        assert agent.process is not None
        agent.process.send_signal(signal.SIGTERM)
        while not isinstance(serve(), wire.Bye):
            pass
        assert agent.process.wait(2) == 0
    assert [item.seq for item in signals] == list(range(1, len(signals) + 1))
    assert next(item.rule for item in signals if item.alert) == "Reads a secret"
    execs = [item for item in signals if not item.alert]
    assert execs[0].rule == "Runs something" and execs[0].output.endswith("/cat")
    assert len(agent.printed()) == sum(item.alert for item in signals)


def test_a_capture_counts_its_losses_and_replays(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    small = agent.folder / "small.yaml"
    text = agent.config.read_text().replace("ring_bytes: 1048576", "ring_bytes: 65536")
    small.write_text(text.replace("wakeup_bytes: 65536", "wakeup_bytes: 32768"))
    target = agent.folder / "file.vcap"
    agent.start("capture", "--output", str(target), "--config", str(small))
    assert agent.process is not None
    read_secrets(agent, 7)
    agent.process.send_signal(signal.SIGSTOP)
    read_secrets(agent, 1999)
    agent.process.send_signal(signal.SIGCONT)
    # Events after the loss show that the agent goes on, and give it the time to notice.
    agent.wait_until(lambda: "events were lost" in agent.log.read_text())
    agent.does("cat secret/last")
    agent.stop(signal.SIGINT)
    with target.open("rb") as stream:
        reader = CaptureReader(stream)
        blocks = list(reader)
    records = b"".join(block.records for block in blocks if isinstance(block, Batch))
    events = list(iter_records(records))
    end = blocks[-1]
    assert isinstance(end, End)
    assert end.counters["submitted"] == len(events)
    opened = [e.path for e in events if TYPE_NAMES[e.type] in ("open", "openat")]
    numbers = [int(path[7:]) for path in opened if path[:7] == b"secret/" and path[7:].isdigit()]
    assert numbers[:7] == list(range(7))
    assert len(numbers) + end.counters["lost_ring_full"] == 7 + 1999
    assert end.counters["lost_ring_full"] > 0
    assert any(isinstance(block, Loss) for block in blocks)
    assert b"secret/last" in opened

    rules_ = pipeline.load(config.Rules(files=(str(agent.rules),)))
    runs = []
    for _ in range(2):
        signals: list[Signal] = []
        with target.open("rb") as stream:
            Replay(CaptureReader(stream), rules_.rules).run(signals.extend)
        runs.append(msgspec.msgpack.encode(signals))
        assert len(signals) > len(numbers)
    assert runs[0] == runs[1]


def test_a_recording_that_is_full_ends_whole_and_the_agent_goes_on(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent()
    record = agent.folder / "run.vcap"
    agent.start(
        "run", "--config", str(agent.config), "--record", str(record), "--record-bytes-max", "65536"
    )
    # Names that do not pack well.
    names = [random.Random(number).randbytes(32).hex() for number in range(3000)]
    script = "".join(f"true < secret/{name}\n" for name in names)
    (agent.folder / "script").write_text(script)
    agent.does(". ./script 2>/dev/null")
    agent.logs("recording is full")
    agent.wait_until(lambda: len(agent.printed()) == 3000)
    agent.stop()
    with record.open("rb") as stream:
        end = list(CaptureReader(stream))[-1]
    assert isinstance(end, End) and end.reason == "full"


def test_a_capture_ends_after_its_time(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    target = agent.folder / "file.vcap"
    agent.start("capture", "-o", str(target), "-c", str(agent.config), "--seconds", "0.1")
    assert agent.process is not None
    assert agent.process.wait(10) == 0
    assert " events, 0 lost, " in agent.log.read_text()
    with target.open("rb") as stream:
        blocks = list(CaptureReader(stream))
    assert isinstance(blocks[0], Snapshot) and isinstance(blocks[-1], End)
    assert agent.shell.pid in [process.pid for process in blocks[0].processes]


def test_another_pid_namespace_is_refused(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    done = subprocess.run(
        ["unshare", "--pid", "--fork", *COMMAND, "run", "--config", str(agent.config)],
        capture_output=True,
    )
    assert done.returncode == 1
    assert b"run the agent in the initial pid namespace" in done.stderr


def started(path: Path) -> list[bytes]:
    """Return what the execs of a capture file ran."""
    with path.open("rb") as stream:
        blocks = list(CaptureReader(stream))
    assert isinstance(blocks[0], Snapshot) and isinstance(blocks[-1], End)
    records = b"".join(block.records for block in blocks if isinstance(block, Batch))
    return [e.args for e in iter_records(records) if TYPE_NAMES[e.type] == "execve"]


def test_a_capture_is_rotated(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    target = agent.folder / "many.vcap"
    agent.start(
        "capture", "-o", str(target), "-c", str(agent.config), "--rotate-seconds", "1",
        "--keep", "3",
    )  # fmt: skip
    seen: set[Path] = set()

    def has_rotated() -> bool:
        agent.does("cat rules.yaml >/dev/null")
        seen.update(agent.folder.glob("many-*.vcap"))
        return len(seen) >= 4

    agent.wait_until(has_rotated)
    agent.does("cat secret >/dev/null 2>&1")
    agent.stop()
    files = sorted(agent.folder.glob("many-*.vcap"))
    assert len(files) == 3 and not target.exists()
    assert b"cat\0secret\0" in started(files[-1])
    assert all(b"cat\0rules.yaml\0" in started(path) for path in files[:2])
    assert f"{target}: 3 files, " in agent.log.read_text()
    for path in files:
        subprocess.run([*COMMAND, "replay", str(path), "-r", str(agent.rules)], check=True)


def test_what_was_before_and_after_a_match_is_written(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent()
    target = agent.folder / "found.vcap"
    agent.start(
        "capture", "-o", str(target), "-c", str(agent.config), "--on", "Reads *", "--after", "0.5"
    )  # fmt: skip
    agent.does("ls /nonexistent/before 2>/dev/null")
    assert not list(agent.folder.glob("found*"))
    agent.does("cat secret/key 2>/dev/null")
    agent.wait_until(lambda: "recording a match" in agent.log.read_text())
    agent.does("ls /nonexistent/after 2>/dev/null")
    (path,) = agent.folder.glob("found-*.vcap")

    def is_whole() -> bool:
        with path.open("rb") as stream:
            try:
                return isinstance(list(CaptureReader(stream))[-1], End)
            except CaptureFileError:
                return False

    agent.wait_until(is_whole)
    agent.does("ls /nonexistent/late 2>/dev/null")
    agent.stop()
    assert started(path) == [
        b"ls\0/nonexistent/before\0", b"cat\0secret/key\0", b"ls\0/nonexistent/after\0",
    ]  # fmt: skip
    assert f"{target}: 1 matches, 1 files, " in agent.log.read_text()
    done = subprocess.run(
        [*COMMAND, "replay", str(path), "-r", str(agent.rules)], capture_output=True, check=True
    )
    assert [json.loads(line)["rule"] for line in done.stdout.splitlines()] == ["Reads a secret"]
    for wrong, message in (
        (["--on", "Raeds a secret"], "no rule Raeds a secret in "),
        (["--on", "Reads *", "--rotate-bytes", "1M"], "use one of them"),
        (["--rules", str(agent.rules)], "--rules goes with --on"),
        (["--rotate-bytes", "1X"], "1X is no size such as 1048576, 64M or 2G"),
    ):
        refused = subprocess.run(
            [*COMMAND, "capture", "-o", str(target), "-c", str(agent.config), *wrong],
            capture_output=True, text=True,
        )  # fmt: skip
        assert refused.returncode == 2 and message in refused.stderr


OWN_ETC = (
    'mount -t tmpfs tmpfs "$0" && mkdir "$0/upper" "$0/work" && '
    'mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" /etc && '
    'exec "$@"'
)
"""A command below `unshare --mount` with an /etc that it may change."""


def test_who_is_added_while_it_runs_has_a_name(
    make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = make_agent("log: {level: debug}\n")
    # A user of another name cannot match, so that the kernel filter has to follow, too.
    agent.rules.write_text(
        "- rule: Runs\n  desc: d\n  condition: evt.type = execve and user.name = vedette-late\n"
        '  output: "%user.name %group.name"\n  priority: INFO\n'
    )
    layer = tmp_path / "layer"
    layer.mkdir()
    agent.start(
        "run",
        "--config",
        str(agent.config),
        below=["unshare", "--mount", "sh", "-c", OWN_ETC, layer],
    )
    assert agent.process is not None
    runs = "setpriv --reuid 64123 --regid 64124 --clear-groups /bin/true"
    agent.does(runs)
    own = Path(f"/proc/{agent.process.pid}/root/etc")
    for name, line in (
        ("group", "vedette-those:x:64124:\n"),
        ("passwd", "vedette-late:x:64123:64124::/:/bin/sh\n"),
    ):
        # As useradd does: another file takes its place.
        fresh = own / f"{name}.new"
        fresh.write_text((own / name).read_text() + line)
        fresh.rename(own / name)
    agent.logs('msg="names read"')

    def ran() -> bool:
        agent.does(runs)
        return bool(agent.printed())

    # Had it looked between the two files, the second one would be read ten seconds later.
    agent.wait_until(ran)
    agent.stop()
    outputs = {str(line["output"]).partition("Informational ")[2] for line in agent.printed()}
    assert outputs == {"vedette-late vedette-those"}
    last = [line for line in agent.log.read_text().splitlines() if "msg=heartbeat" in line][-1]
    assert "names.failed=0" in last and "names.changed=0" not in last


def test_what_is_left_of_who_stopped_or_ended_is_told(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent("log: {level: debug}\n")
    agent.config.write_text(
        agent.config.read_text().replace("capture: {", "capture: {process_per_s: 64, ")
    )
    agent.rules.write_text(
        rules(str(agent.secret)) + "- rule: Suppressed\n  desc: d\n"
        '  condition: evt.type = suppressed\n  output: "told %evt.suppressed of %proc.name"\n'
        "  priority: INFO\n"
    )

    def told() -> list[int]:
        words = (str(line["output"]).split() for line in agent.printed())
        return [int(line[line.index("told") + 1]) for line in words if "told" in line]

    flood = f"import os\nfor n in range(5000):\n try: os.open('{agent.secret}/' + str(n), 0)\n"
    flood += " except OSError: pass\n"
    (agent.folder / "flood.py").write_text(flood + "import sys\nsys.stdin.read()\n")
    agent.start("run", "--config", str(agent.config))
    for _ in range(2):
        count = len(told())
        # It lives on, and causes nothing more.
        agent.does(f"mkfifo hold; {sys.executable} -IS flood.py < hold & exec 3> hold")
        agent.wait_until(lambda n=count: any(one > 100 for one in told()[n:]))  # type: ignore[misc]
        agent.does("exec 3>&-; wait; rm hold")
    # One that the agent's end leaves no time to be told of.
    agent.does(f"{sys.executable} -IS flood.py < /dev/null")
    agent.stop()
    last = [line for line in agent.log.read_text().splitlines() if "msg=heartbeat" in line][-1]
    suppressed = int(last.partition("capture.suppressed=")[2].split()[0])
    assert suppressed > 3 * 1000
    assert sum(told()) == suppressed
