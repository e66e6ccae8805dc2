"""Releases of rules on an agent as a process of its own, on real kernel events, and its kills."""

from __future__ import annotations

import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.agent.test_service import COMMAND, Agent, WaitUntil, read_secrets
from tests.aggregator.service import aggregator, metrics_url
from tests.aggregator.test_releases import QUICK, World

pytestmark = pytest.mark.bpf

DIES = """
import os, signal
from vedette.agent import service

class Dies(service._Reload):
    def run(self):
        os.kill(os.getpid(), signal.SIGKILL)

service._Reload = Dies
from vedette.agent.cli import main
main()
"""
"""Is killed when a release is written down and about to be compiled."""

REFUSES = """
from vedette.bpf import capture

want = capture.Capture.want

def refusing(self, types, drops=None):
    if "mkdir" in types:
        raise capture.CaptureError("the kernel refuses: mkdir")
    want(self, types, drops)

capture.Capture.want = refusing
from vedette.agent.cli import main
main()
"""


def opens(agent: Agent, name: str, folder: str) -> str:
    return f"""
- rule: {name}
  desc: a file is opened
  condition: evt.type in (open, openat) and fd.name startswith {agent.folder}/{folder}
  output: "%fd.name"
  priority: WARNING
"""


def test_kills_restarts_and_releases_that_only_the_agent_finds_bad_the_kernels_refusal_is_a_fake(
    tmp_path: Path, cgroup: Path, wait_until: WaitUntil
) -> None:
    folder = tmp_path / "aggregator"
    extra = f"ship: {{endpoint: 'ipc://{folder}/socket'}}\nmetrics: {{listen: '127.0.0.1:0'}}\n"
    agent = Agent(tmp_path, cgroup, wait_until, extra)
    try:
        with aggregator(folder) as service:
            world = World(folder, service)
            text = agent.config.read_text()
            signers = f"signers: ['{world.signer}'], releases_path: releases"
            agent.config.write_text(
                text.replace("{files: [rules.yaml]}", f"{{files: [rules.yaml], {signers}}}")
            )
            other = tmp_path / "other"
            other.mkdir()
            rules = world.rules()

            def push(text: str, *words: str) -> int:
                rules.write_text(text)
                code, out, error = world.run(
                    *("rules", "push", rules, "-k", world.key, "--stages", "100%", *QUICK, *words)
                )
                assert code == 0, error
                return int(out.split()[1].rstrip(":"))

            def start(program: str) -> subprocess.Popen[bytes]:
                COMMAND[2] = program
                agent.start("run", "--config", str(agent.config))
                assert agent.process is not None
                return agent.process

            def seen(name: str) -> bool:
                return any(line["rule"] == name for line in agent.printed())

            # Killed between writing a release down and its being in force: it starts with it.
            dying = start(DIES)
            first = push(opens(agent, "Opens another", "other/"))
            assert dying.wait(20) == -signal.SIGKILL
            agent.log.write_text("")
            running = start(REFUSES)
            world.becomes(first, "complete")
            agent.does("true < other/x 2>/dev/null; true < secret/x 2>/dev/null")
            wait_until(lambda: seen("Opens another") and seen("Reads a secret"))

            # One that makes a flood of signals: the agent goes back, and so would the fleet.
            second = push(opens(agent, "Opens anything", ""), "--settle", "30s")
            agent.logs(f'"release in force" release={second}')
            read_secrets(agent, 600)
            world.becomes(second, "withdrawn")
            assert "signals in" in world.info(second).reason
            back = f'"release in force" release={first}\n'
            wait_until(lambda: agent.log.read_text().count(back) == 2)

            # One that the kernel does not take.
            third = push(opens(agent, "Makes", "").replace("open, openat) and fd", "mkdir) or fd"))
            world.becomes(third, "withdrawn")
            assert "the kernel refuses: mkdir" in world.info(third).reason

            # What was in force before is again, and a reload keeps to it.
            wait_until(lambda: world.run("hosts")[1].count(f"{first}, {third} ") == 1)
            url = metrics_url(agent.log.read_text())
            agent.log.write_text("")
            running.send_signal(signal.SIGHUP)
            agent.logs('msg="rules reloaded"')
            assert f"release={first} " in agent.log.read_text()
            agent.alerts.write_text("")
            agent.does("true < other/y 2>/dev/null")
            wait_until(lambda: seen("Opens another"))
            assert not seen("Opens anything")
            with urllib.request.urlopen(f"{url}/metrics") as answer:
                page = answer.read().decode().splitlines()
            shown = [line for line in page if line.startswith("vedette_agent_release_")]
            assert f"vedette_agent_release_number {first}.0" in shown
            assert "vedette_agent_release_failed_total 2.0" in shown
            agent.stop()
    finally:
        COMMAND[2] = "from vedette.agent.cli import main; main()"
        agent.close()
