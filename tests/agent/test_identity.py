"""What the agent knows about its host, against what the system's own tools say."""

from __future__ import annotations

import ipaddress
import json
import os
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


SLOW = r"""
#include <errno.h>
#include <fcntl.h>
#include <nss.h>
#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>

static int told;

enum nss_status _nss_slow_setpwent(int stay) { (void)stay; told = 0; return NSS_STATUS_SUCCESS; }
enum nss_status _nss_slow_endpwent(void) { return NSS_STATUS_SUCCESS; }

/* Answers when somebody has written to the pipe. */
enum nss_status _nss_slow_getpwent_r(struct passwd *entry, char *buffer, size_t size, int *error)
{
    char byte;
    int fd;

    (void)buffer, (void)size;
    *error = ENOENT;
    if (told++)
        return NSS_STATUS_NOTFOUND;
    fd = open(getenv("SLOW_PIPE"), O_RDONLY);
    if (read(fd, &byte, 1) != 1)
        abort();
    close(fd);
    *entry = (struct passwd){"slow", "x", 424242, 0, "", "/", "/bin/sh"};
    return NSS_STATUS_SUCCESS;
}
"""
ASKS_SLOW = """
import os, threading
from vedette.agent import identity

def answer():
    with open(os.environ["SLOW_PIPE"], "w") as pipe:
        pipe.write("x")

# While the database is asked, this thread goes on, or nobody would ever answer.
found = {}
asking = threading.Thread(target=lambda: found.update(identity.users()))
asking.start()
answer()
asking.join()
assert (found[0], found[424242]) == (b"root", b"slow"), found

# One that does not answer in time: what is known, also of what came before it.
late = identity.Database("users", "pw", identity._Passwd)
for count in (1, 2):
    names = late.names(0.2)
    assert names[0] == b"root" and 424242 not in names and late.late == count
answer()
late._thread.join()
# What came too late for who asked is known to the next one, though that is late again.
assert late.names(0.2)[424242] == b"slow" and late.late == 3
answer()
late._thread.join()
asking = threading.Thread(target=answer)  # whom the next one asks
asking.start()
assert late.names(20)[424242] == b"slow" and late.late == 3
asking.join()
assert late.names(0.2)[424242] == b"slow" and late.late == 4
os._exit(0)  # the last one is never answered
"""


def test_a_user_database_that_answers_late_holds_up_only_who_asks(tmp_path: Path) -> None:
    source, pipe, switch = tmp_path / "slow.c", tmp_path / "pipe", tmp_path / "nsswitch.conf"
    source.write_text(SLOW)
    library = tmp_path / "libnss_slow.so.2"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True
    )
    os.mkfifo(pipe)
    switch.write_text("passwd: files slow\ngroup: files\n")
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            'mount --bind "$0" /etc/nsswitch.conf && exec "$@"',
            *(switch, sys.executable, "-c", ASKS_SLOW),
        ],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "SLOW_PIPE": str(pipe)},
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "users are not all read" in done.stderr


NO_THREADS = """
import os, resource
from vedette.agent import identity
from vedette.agent.errors import AgentError

os.setuid(65534)  # root may have any number
_, most = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
try:
    identity.users()
except AgentError as error:
    assert "users cannot be read" in str(error), error
else:
    raise AssertionError("there was a thread")
resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
assert identity.users()[0] == b"root"
"""


def test_names_are_read_once_there_can_be_threads_again() -> None:
    done = subprocess.run([sys.executable, "-c", NO_THREADS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
