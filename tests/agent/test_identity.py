"""What the agent knows about its host, against what the system's own tools say."""

from __future__ import annotations

import ipaddress
import json
import pwd
import subprocess
import sys
import time
from pathlib import Path

from vedette.agent import identity


def test_addresses_are_those_that_the_system_shows() -> None:
    shown = subprocess.run(["ip", "-json", "address"], capture_output=True, check=True).stdout
    addresses = {
        ipaddress.ip_address(info["local"])
        for link in json.loads(shown)
        for info in link["addr_info"]
        if "local" in info
    }
    expected = {str(a) for a in addresses if not (a.is_loopback or a.is_link_local)}
    found = identity.addresses()
    assert len(found) == len(set(found)) <= identity.ADDRESSES_MAX
    assert set(found) == expected


def test_addresses_of_a_namespace_that_has_none() -> None:
    code = "from vedette.agent import identity; print(identity.addresses())"
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"[]\n"), done.stderr


def test_boot_time_and_the_offset_give_the_wall_clock() -> None:
    before = time.time_ns()
    offset = identity.boot_to_wall_ns()
    wall = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + offset
    after = time.time_ns()
    assert before - 1_000_000 <= wall <= after + 1_000_000


def test_names_of_users_are_those_of_the_database() -> None:
    names = identity.users()
    assert names[0] == b"root"
    assert {uid: pwd.getpwuid(uid).pw_name.encode() for uid in names} == names
    assert identity.groups()[0] == b"root"


def test_each_run_has_a_numbering_of_its_own_and_the_host_one_id() -> None:
    assert identity.numbering_id() != identity.numbering_id()
    assert identity.host_id() == identity.host_id()
    assert len(identity.host_id()) == 32


def test_name_files_are_looked_at_and_not_read(tmp_path: Path) -> None:
    passwd, absent = tmp_path / "passwd", tmp_path / "absent"
    passwd.write_text("root:x:0:0::/:/bin/sh\n")
    files = identity.NameFiles([str(passwd), str(absent)])
    assert not files.changed()
    passwd.write_text("root:x:0:0::/:/bin/zsh\n")
    assert files.changed() and not files.changed()
    fresh = tmp_path / "new"
    fresh.write_bytes(passwd.read_bytes())
    fresh.rename(passwd)
    assert files.changed() and not files.changed()
    absent.touch()
    assert files.changed()
    absent.unlink()
    assert files.changed() and not files.changed()
