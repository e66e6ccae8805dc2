"""The agent as a process of its own, on real kernel events, killed while the aggregator is away."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest

from tests import dashboard, guide
from tests.agent.test_service import Agent, WaitUntil
from tests.aggregator.service import aggregator, metrics_url
from vedette.aggregator.store import Host, Store
from vedette.core import releases

pytestmark = pytest.mark.bpf


def stored(path: Path) -> list[tuple[str, int, str]]:
    with Store.open(path, read_only=True) as store:
        return [
            (s.boot_id, s.seq, str(s.fields.get("fd.name")))
            for s in store.signals(rule="Reads a secret", after_id=0)
        ]


def said(path: Path) -> Host:
    """What the store knows of the only host."""
    with Store.open(path, read_only=True) as store:
        (host,) = store.hosts()
    return host


def test_alerts_of_agents_that_were_killed_arrive_once_each(
    tmp_path: Path, cgroup: Path, wait_until: WaitUntil
) -> None:
    folder = tmp_path / "aggregator"
    extra = (
        f"ship: {{endpoint: 'ipc://{folder}/socket', spool_path: spool}}\n"
        "metrics: {listen: '127.0.0.1:0'}\n"
    )
    agent = Agent(tmp_path, cgroup, wait_until, extra)
    names = [f"{agent.secret}/{number}" for number in range(6)]
    try:
        for start in (0, 2):
            agent.log.write_text("")
            agent.start("run", "--config", str(agent.config))
            for name in names[start : start + 2]:
                agent.does(f"echo x > {name}")
            wait_until(lambda start=start: len(agent.printed()) == start + 2)
            assert agent.process is not None
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
        agent.log.write_text("")
        agent.start("run", "--config", str(agent.config))
        with aggregator(folder) as service:
            for name in names[4:]:
                agent.does(f"echo x > {name}")
            wait_until(lambda: len(stored(service.store_path)) == 6)
            found = stored(service.store_path)
            assert [name for _, _, name in found] == names
            assert len({boot for boot, _, _ in found}) == 3
            agent.stop()
            wait_until(lambda: said(service.store_path).left_reason == "the agent was stopped")
            host = said(service.store_path)
            assert (host.signals_lost, host.signals_missing) == (0, 0)
        assert [path.name for path in (tmp_path / "spool").iterdir()] == ["lock"]
    finally:
        agent.close()


HASHES = """
- rule: Known to be bad
  desc: asks for hashes
  condition: evt.type = execve and proc.exe_sha256 = 0
  output: "%proc.exepath"
  priority: DEBUG
"""


def test_metrics_of_a_running_agent(tmp_path: Path, cgroup: Path, wait_until: WaitUntil) -> None:
    extra = (
        "metrics: {listen: '127.0.0.1:0'}\n"
        f"ship: {{endpoint: 'ipc://{tmp_path}/nobody', spool_path: spool}}\n"
    )
    agent = Agent(tmp_path, cgroup, wait_until, extra)
    signer = releases.make_key(tmp_path / "signing.pem")
    files = f"[rules.yaml], signers: ['{signer}'], releases_path: releases"
    agent.config.write_text(agent.config.read_text().replace("[rules.yaml]", files))
    with agent.rules.open("a") as stream:
        stream.write(HASHES)
    try:
        agent.start("run", "--config", str(agent.config))
        agent.does(f"echo x > {agent.secret}/one")
        url = metrics_url(agent.log.read_text())

        def get(path: str) -> str:
            with urllib.request.urlopen(f"{url}/{path}", timeout=10) as answer:
                text: str = answer.read().decode()
                return text

        wait_until(lambda: 'signals_total{rule="Reads a secret"} 1' in get("metrics"))
        assert "vedette_agent_capture_" in get("metrics")
        wait_until(lambda: dashboard.missing("vedette_agent_", get("metrics")) == set())
        assert dashboard.names("vedette_agent_")
        assert guide.differences("agent", get("metrics")) == set()
        assert get("healthz") == "ok\n"
        agent.stop()
    finally:
        agent.close()
