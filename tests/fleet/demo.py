"""`make demo`: a real attack over SSH between three hosts becomes one incident.

Exit code 0: exactly one incident appeared, and it tells what happened. HOLD=1 keeps the fleet up
afterwards, for exploring with `vedette`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule

from tests.fleet import scene
from tests.fleet.hosts import BRIDGE_ADDRESS, Fleet, FleetError
from tests.fleet.services import Services

DEMO_S_MAX = 110
INCIDENT_S_MAX = 20.0
PAUSE_S = 0.8
HOLD = os.environ.get("HOLD", "") not in ("", "0")
STYLES = {"CRITICAL": "bold red", "WARNING": "yellow", "NOTICE": "cyan", "INFORMATIONAL": "blue"}
STEPS = ["knock", "entry", "theft", "pivot", "landing", "execution", "callback"]


class Ended(BaseException):
    """A signal asked the demo to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def _on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    if number == signal.SIGALRM:
        raise FleetError(f"the demo takes longer than {DEMO_S_MAX} s")
    raise Ended(number)


Item = tuple[str, dict[str, Any] | None]


def _read(source: str, stream: IO[str], into: queue.Queue[Item]) -> None:
    """Put each JSON line of a stream into the queue, and None at its end."""
    try:
        for line in stream:
            into.put((source, json.loads(line)))
    except ValueError:
        # The fleet is being removed, and the stream was closed under its reader.
        return
    into.put((source, None))


def play(console: Console, fleet: Fleet, services: Services) -> None:
    """Play the attack; print its steps and what was recognised of them, as either comes."""
    arrived: queue.Queue[Item] = queue.Queue()
    alerts = fleet.spawn(
        services.command("alerts", "--follow", "--all", "--json"),
        cgroup="services",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    attacker = scene.attack(fleet, PAUSE_S)
    for source, process in (("alert", alerts), ("attack", attacker)):
        assert process.stdout is not None
        threading.Thread(target=_read, args=(source, process.stdout, arrived), daemon=True).start()
    for source, item in _until_quiet(arrived):
        if source == "alert":
            show_alert(console, item)
        else:
            console.print(f"[magenta]attacker[/]  {escape(item['text'])}")
    if attacker.wait() != 0:
        assert attacker.stderr is not None
        raise FleetError(f"the attack failed: {attacker.stderr.read().strip()}")


def _until_quiet(arrived: queue.Queue[Item]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what arrives, until the attack has ended and no alert came for two seconds."""
    attacking = True
    while True:
        try:
            source, item = arrived.get(timeout=None if attacking else 2.0)
        except queue.Empty:
            return
        if item is not None:
            yield source, item
        elif source == "attack":
            attacking = False
        else:
            raise FleetError("`vedette alerts --follow` has ended")


def show_alert(console: Console, found: dict[str, Any]) -> None:
    """Print a signal in a line: bright where a person is to see it, else dim."""
    style = STYLES.get(found["priority"], "white") if found["alert"] else "dim"
    kind = found["priority"] if found["alert"] else "signal"
    console.print(
        f"[{style}]{kind:>13}  {escape(found['host'])}  {escape(found['rule']):<25}[/]"
        f"[dim]{escape(found['output'])}[/]",
        no_wrap=True,
        overflow="ellipsis",
    )


def the_incident(services: Services) -> dict[str, Any]:
    """Return the one incident. Raises FleetError where it is not one, or not the right one."""
    services.wait_complete()
    deadline = time.monotonic() + INCIDENT_S_MAX
    while not (incidents := services.incidents()):
        if time.monotonic() > deadline:
            raise FleetError("no incident appeared")
        time.sleep(0.2)
    if len(incidents) != 1:
        raise FleetError(f"{len(incidents)} incidents appeared, not one")
    incident = incidents[0]
    steps = list(dict.fromkeys(found["step"] for found in incident["signals"]))
    involved = {found["host"] for found in incident["signals"]}
    involved |= {found["peer_host"] for found in incident["signals"] if found["peer_host"]}
    if steps != STEPS or involved != set(scene.ACCOUNTS):
        raise FleetError(f"the incident is not the attack: {steps} on {sorted(involved)}")
    return incident


def hold(console: Console, fleet: Fleet, services: Services) -> None:
    """Print how to explore, and wait for Ctrl-C."""
    console.print(Rule("kept up by HOLD=1; Ctrl-C ends it", style="green"))
    commands = [
        services.command("hosts"),
        services.command("alerts", "--all", "--follow"),
        services.command("incidents"),
    ]
    for argv in commands:
        console.print(" ".join(argv), soft_wrap=True, highlight=False)
    for name, host in fleet.hosts.items():
        # The shell goes into the host's cgroup first, so that what is done in it is seen.
        procs = fleet.cgroup / name / "cgroup.procs"
        shell = " ".join(host.argv(["bash"]))
        console.print(
            f"sh -c 'echo 0 > {procs}; exec {shell}'   [dim]# a shell on {name}[/]", soft_wrap=True
        )
    while True:
        signal.pause()


def demo(console: Console) -> None:
    """Run the whole demo. Raises FleetError where it does not show what it is to show."""
    console.print(Rule("three hosts, one bridge, one aggregator"))
    begun = time.monotonic()
    with Fleet(scene.ACCOUNTS) as fleet:
        scene.prepare(fleet)
        scene.listen(fleet, fleet.directory / "calls")
        services = Services(fleet)
        services.start()
        took_s = time.monotonic() - begun
        for name, host in fleet.hosts.items():
            console.print(
                f"  [bold]{name}[/]       {host.address:<13} sshd, vedette-agent;"
                f" account {', '.join(host.users)}"
            )
        console.print(f"  bridge  {BRIDGE_ADDRESS:<13} vedette aggregator; the attacker's listener")
        console.print(f"[green]hosts, agents and aggregator up in {took_s:.1f} s[/]\n")
        try:
            console.print(Rule("the attack, and what the kernels showed of it"))
            play(console, fleet, services)
            console.print()
            console.print(Rule("the incident"))
            incident = the_incident(services)
        except FleetError as error:
            if not HOLD:
                raise
            console.print(f"[bold red]demo:[/] {escape(str(error))}", soft_wrap=True)
        else:
            subprocess.run(services.command("incidents", "show", incident["id"]), check=True)
            console.print("[green]one attack over three hosts, one incident[/]")
        if HOLD:
            signal.alarm(0)
            hold(console, fleet, services)


def main() -> int:
    console = Console(highlight=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, _on_signal)
    signal.alarm(DEMO_S_MAX)
    try:
        demo(console)
    except FleetError as error:
        console.print(f"[bold red]demo:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except Ended as ended:
        console.print("[dim]ended; nothing is left[/]")
        return 0 if HOLD and ended.number == signal.SIGINT else 128 + ended.number
    return 0


if __name__ == "__main__":
    sys.exit(main())
