"""Arguments that are changed in memory while their syscall runs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from tests.bpf.records import Record
from tests.bpf.test_filter import drops
from tests.bpf.test_sockets import python
from vedette.bench.scope import Scope
from vedette.bpf.capture import Drop
from vedette.core import layout
from vedette.core.condition import parse_condition
from vedette.core.kernelfilter import derive

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]


def paths(record: Record) -> tuple[bytes, bytes]:
    return record["was"].rstrip(b"\0"), record["path"].rstrip(b"\0")


RACE = """if True:
    import ctypes, os, sys, threading
    libc = ctypes.CDLL(None)
    os.mkfifo(sys.argv[1])
    path = ctypes.create_string_buffer(os.fsencode(sys.argv[1]))
    reader = threading.Thread(target=lambda: libc.open(path, os.O_RDONLY))
    reader.start()
    # The open waits for a writer: it is in the kernel, which has its copy of the path.
    while not open(f"/proc/self/task/{reader.native_id}/syscall").read().startswith("257 "):
        pass
    path.value = b"/vedette/other"
    os.open(sys.argv[1], os.O_WRONLY)
    reader.join()
"""


def test_a_path_that_changes_between_entry_and_return_is_told(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("openat", "raced", read_at_entry=True)
    fifo = tmp_path / "fifo"
    scope.run(sys.executable, "-IS", "-c", RACE, fifo)
    records = seen.records()
    (raced,) = [record for record in records if record.type == "raced"]
    assert paths(raced) == (os.fsencode(fifo)[:127], b"/vedette/other")
    assert raced["of_type"] == layout.TYPES["openat"]
    following = records[records.index(raced) + 1]
    assert (following.type, following["path"]) == ("openat", b"/vedette/other")

    # That no rule is about the path that is there now hides nothing.
    no_path = (frozenset[bytes](), frozenset[bytes]())
    seen.capture.want(("openat", "raced"), {"openat": Drop(paths=(no_path, no_path))})
    fifo.unlink()
    scope.run(sys.executable, "-IS", "-c", RACE, fifo)
    plain = [record for record in seen.records() if b"/." not in record["path"]]
    assert [record.type for record in plain] == ["raced", "openat"]
    assert paths(plain[0]) == paths(raced)
    assert plain[1]["path"] == b"/vedette/other"


@pytest.mark.parametrize("is_dropped", [False, True])
def test_another_address_than_the_sockets_is_told(
    watch: Start, scope: Scope, is_dropped: bool
) -> None:
    """Also where no rule can match a connection to where it really leads."""
    seen = watch("connect", "raced")
    if is_dropped:
        condition = parse_condition("evt.type = connect and fd.rnet = 192.0.2.0/24")
        filters = derive([condition], users={}, groups={}, hostname=None)
        seen.capture.want(("connect", "raced"), drops(filters))
    code = """
        server, other = socket.socket(), socket.socket()
        for one in server, other:
            one.bind(("127.0.0.1", 0))
            one.listen()
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(server.getsockname())
        # The kernel finishes the connect that it has begun, whatever is passed now.
        while (result := client.connect_ex(other.getsockname())) == 114:
            pass
        print(result)
        plain = socket.socket()
        plain.connect(("0.0.0.0", server.getsockname()[1]))
    """
    assert python(scope, code) == [0]
    records = seen.records()
    at = [record.type for record in records].index("raced")
    others = [record.type for record in records[:at] + records[at + 1 :]]
    assert others == ["connect"] if is_dropped else others[-3:] == ["connect"] * 3
    assert records[at]["of_type"] == layout.TYPES["connect"]
    assert records[at + 1]["remote_addr"][:4] == b"\x7f\0\0\1"
    if is_dropped:
        assert seen.counters()["filtered"] > 1
    else:
        assert records[at + 1]["remote_port"] == records[0]["remote_port"]
