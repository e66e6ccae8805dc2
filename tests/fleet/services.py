"""Vedette on a fleet: an agent per host, one aggregator on the bridge, and the operator's CLI.

Agents run in their host's namespaces, so that they see its name, addresses, accounts and files,
but in a cgroup beside the hosts': what they report is their host's cgroup, never themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.fleet.hosts import BRIDGE_ADDRESS, PROJECT, WAIT_S, Fleet, FleetError, Host, Place
from vedette.core.keys import make_pair, write_pair

PORT = 7710
RULES = ("base", "ssh", "credentials", "execution")
BIN = Path(sys.executable).parent
START_S_MAX = 60.0


class Services:
    """The agents and the aggregator of a fleet; they end with the fleet.

    directory  configuration, keys, logs, alerts and the store
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.directory = fleet.directory / "vedette"
        self.directory.mkdir(mode=0o700)
        self.config = self.directory / "aggregator.yaml"
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> None:
        """Start everything; return once each host's agent watches and the aggregator knows it.

        Raises FleetError with the log of what does not start.
        """
        server = make_pair()
        write_pair(self.directory / "aggregator.key", server)
        allowed = []
        for name in self.fleet.hosts:
            pair = make_pair()
            write_pair(self.directory / f"{name}.key", pair)
            allowed.append(f"{pair.public} {name}\n")
        (self.directory / "allowed").write_text("".join(allowed))
        self._write(
            self.config,
            {
                "listen": {
                    "endpoint": f"tcp://{BRIDGE_ADDRESS}:{PORT}",
                    "key_file": "aggregator.key",
                    "allow_list": "allowed",
                },
                "store": {"path": "store.db"},
                "sequences": {"files": [str(PROJECT / "rules/sequences.yaml")]},
            },
        )
        self._spawn("aggregator", self.fleet.bridge, "vedette", "aggregator", "run", self.config)
        for host in self.fleet.hosts.values():
            self._start_agent(host, server.public)
        self._wait()

    def _start_agent(self, host: Host, server_key: str) -> None:
        config = self.directory / f"{host.name}.yaml"
        self._write(
            config,
            {
                # The machine-id is this machine's, so it cannot tell the hosts apart.
                "host": {"id": host.name},
                "capture": {"scope": str(self.fleet.cgroup / host.name)},
                "rules": {"files": [str(PROJECT / f"rules/{name}.yaml") for name in RULES]},
                "outputs": [{"type": "file", "path": f"{host.name}.alerts.json"}],
                "ship": {
                    "endpoint": f"tcp://{BRIDGE_ADDRESS}:{PORT}",
                    "server_key": server_key,
                    "client_key_file": f"{host.name}.key",
                },
                "heartbeat_s": 0.5,
            },
        )
        self._spawn(host.name, host, "vedette-agent", "run", config)

    def _write(self, path: Path, settings: dict[str, Any]) -> None:
        path.write_text(yaml.safe_dump(settings, sort_keys=False))

    def _spawn(self, name: str, place: Place, *command: str | Path) -> None:
        program, *words, config = command
        with (self.directory / f"{name}.log").open("w") as log:
            self._processes[name] = place.spawn(
                [BIN / program, *words, "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise FleetError(f"{name} does not start: {self.log(name)}")
            known = self.hosts() if (self.directory / "store.db").exists() else []
            # Before its programs are attached an agent has nothing to be complete about.
            if sum(host["complete_until"] > "1971" for host in known) == len(self.fleet.hosts):
                return
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}: {self.log(name)}" for name in self._processes)
                raise FleetError(f"not all agents report within {START_S_MAX:g} s:\n{logs}")
            time.sleep(0.1)

    def log(self, name: str) -> str:
        """Return what an agent, or "aggregator", has said about itself."""
        return (self.directory / f"{name}.log").read_text(errors="replace").strip()

    def command(self, *arguments: str) -> list[str]:
        """Return the operator's command line that asks this fleet's store."""
        return [str(BIN / "vedette"), *arguments, "--config", str(self.config)]

    def ask(self, *arguments: str) -> list[dict[str, Any]]:
        """Return what a command of the CLI says as JSON. Raises FleetError where it fails."""
        command = self.command(*arguments, "--json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX)
        if done.returncode != 0:
            raise FleetError(f"{' '.join(command)}: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def hosts(self) -> list[dict[str, Any]]:
        return self.ask("hosts")

    def alerts(self) -> list[dict[str, Any]]:
        return self.ask("alerts")

    def signals(self) -> list[dict[str, Any]]:
        """Return all signals, also those that are shown to nobody, oldest first."""
        return self.ask("alerts", "--all", "--limit", "10000")

    def incidents(self) -> list[dict[str, Any]]:
        """Return all incidents with their signals."""
        return [self.ask("incidents", "show", found["id"])[0] for found in self.ask("incidents")]

    def wait_complete(self, moment_s: float | None = None) -> None:
        """Return once every host has reported all of its signals up to now (or a time given).

        Raises FleetError where one does not.
        """
        now = datetime.fromtimestamp(moment_s or time.time(), tz=UTC)
        deadline = time.monotonic() + WAIT_S
        while not all(
            datetime.fromisoformat(host["complete_until"]) > now for host in self.hosts()
        ):
            if time.monotonic() > deadline:
                raise FleetError(f"not all hosts report up to {now}: {self.hosts()}")
            time.sleep(0.1)
