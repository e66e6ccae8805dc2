"""The use of capabilities, as the kernel is asked for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from tests.bpf.records import Record
from tests.bpf.test_filter import drops
from vedette.bench.scope import Scope, compile_c
from vedette.bpf import capture
from vedette.bpf.offsets import accounting, unavailable
from vedette.core.calls import CAPABILITIES
from vedette.core.condition import parse_condition
from vedette.core.documents import compose
from vedette.core.engine import Engine
from vedette.core.kernelfilter import derive
from vedette.core.kubearmor import load_policies
from vedette.core.records import decode

pytestmark = [
    pytest.mark.bpf,
    pytest.mark.skipif(
        "capable" in unavailable(), reason="this kernel has no tracepoint cap_capable (Linux 6.14)"
    ),
]
Start = Callable[..., Watch]

EPERM = -1
NOBODY = 65534
RAW_SOCKET = "native 41 n2 n3 n1"
NEW_HOSTNAMES = "native 272 n0x4000000"  # unshare(CLONE_NEWUTS)
NEW_USERS = "native 272 n0x10000000"
BECOME_NOBODY = f"native 117 n{NOBODY} n{NOBODY} n{NOBODY}"


@pytest.fixture
def seen(watch: Start) -> Watch:
    return watch("execve", "capable")


def run(scope: Scope, folder: Path, *calls: str) -> None:
    program = compile_c(Path(__file__).parent / "calls.c")
    scope.run(program, folder, *" -- ".join(calls).split(" "))


def uses(seen: Watch, *names: str) -> list[tuple[str, int, int, int]]:
    """What was told of some capabilities: name, result, user, depth of the user namespace."""
    found = [
        (CAPABILITIES[record["arg0"]].decode(), record["result"], record["uid"], record["arg1"])
        for record in seen.records()
        if record.type == "capable"
    ]
    return [use for use in found if use[0] in names]


def test_each_result_is_told_once_of_each_user(watch: Start, scope: Scope, tmp_path: Path) -> None:
    seen = watch("capable")
    run(scope, tmp_path, *[RAW_SOCKET] * 3, BECOME_NOBODY, *[RAW_SOCKET] * 3)
    assert uses(seen, "CAP_NET_RAW", "CAP_SETUID") == [
        ("CAP_NET_RAW", 0, 0, 0),
        ("CAP_SETUID", 0, 0, 0),
        ("CAP_NET_RAW", EPERM, NOBODY, 0),
    ]
    assert seen.counters()["repeated"] >= 4
    run(scope, tmp_path, RAW_SOCKET)
    assert uses(seen, "CAP_NET_RAW") == [("CAP_NET_RAW", 0, 0, 0)], "of another process"


def test_an_exec_makes_another_program(seen: Watch, scope: Scope) -> None:
    code = """if True:
        import os, socket, sys
        socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
        if len(sys.argv) == 1:
            os.execv(sys.executable, [*sys.orig_argv, "again"])
    """
    scope.run(sys.executable, "-IS", "-c", code)
    raw = CAPABILITIES.index(b"CAP_NET_RAW")
    used: list[Record] = [
        record for record in seen.records() if record.type == "capable" and record["arg0"] == raw
    ]
    assert len(used) == 2
    assert used[0]["pid"] == used[1]["pid"]


def test_to_map_memory_is_no_use_of_a_capability(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    start, end = (int(value.removesuffix("ull")) for value in accounting().values())
    assert 0 < end - start < 4096
    seen = watch("capable")
    # Each exec maps memory, and a file in memory grows by what is written to it.
    run(scope, tmp_path, RAW_SOCKET)
    code = "import os; os.write(os.memfd_create('x'), bytes(1 << 16))"
    scope.run(sys.executable, "-IS", "-c", code)
    assert uses(seen, "CAP_SYS_ADMIN") == []
    run(scope, tmp_path, NEW_HOSTNAMES, NEW_HOSTNAMES)
    assert uses(seen, "CAP_SYS_ADMIN") == [("CAP_SYS_ADMIN", 0, 0, 0)]


def test_of_a_namespace_of_its_own_the_depth_is_told(
    seen: Watch, scope: Scope, tmp_path: Path
) -> None:
    run(scope, tmp_path, BECOME_NOBODY, NEW_HOSTNAMES, NEW_USERS, NEW_HOSTNAMES)
    assert uses(seen, "CAP_SYS_ADMIN") == [
        ("CAP_SYS_ADMIN", EPERM, NOBODY, 0),
        ("CAP_SYS_ADMIN", 0, NOBODY, 1),
    ]


def test_the_kernel_drops_what_no_rule_asks_about(
    seen: Watch, scope: Scope, tmp_path: Path
) -> None:
    condition = parse_condition(
        "evt.type = capable and capability.name = CAP_NET_RAW and evt.failed = false"
    )
    filters = derive([condition], users={}, groups={}, hostname=None)
    seen.capture.want(("capable",), drops(filters))
    run(scope, tmp_path, NEW_HOSTNAMES, RAW_SOCKET, BECOME_NOBODY, RAW_SOCKET)
    records = [record for record in seen.records() if record.type == "capable"]
    assert [(record["arg0"], record["result"]) for record in records] == [
        (CAPABILITIES.index(b"CAP_NET_RAW"), 0)
    ]
    assert seen.counters()["filtered"] >= 3
    seen.capture.pass_all()
    run(scope, tmp_path, NEW_HOSTNAMES)
    assert uses(seen, "CAP_SYS_ADMIN") == [("CAP_SYS_ADMIN", 0, 0, 0)]


def test_over_its_budget_a_process_tells_no_more(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("capable", process_per_s=1)
    run(scope, tmp_path, RAW_SOCKET, BECOME_NOBODY, RAW_SOCKET)
    assert len([record for record in seen.records() if record.type == "capable"]) < 3
    assert seen.counters()["suppressed"] >= 1


POLICY = b"""
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: raw}
spec:
  capabilities:
    matchCapabilities:
      - {capability: net_raw, action: Audit}
      - {capability: sys_admin, fromSource: [{path: /nowhere}]}
"""


def test_a_policy_decides_about_what_the_kernel_tells(
    seen: Watch, scope: Scope, tmp_path: Path
) -> None:
    made = load_policies([("raw.yaml", node) for node in compose(POLICY, "raw.yaml")])
    matches: list[str] = []
    engine = Engine(
        made.rules,
        on_match=lambda raw, indices, acting: matches.extend(
            f"{made.decisions[made.rules[index].name].outcome} {decode(raw).uid}"
            for index in indices
        ),
    )
    run(scope, tmp_path, NEW_HOSTNAMES, RAW_SOCKET, BECOME_NOBODY, RAW_SOCKET)
    engine.consume(seen.ring, 1 << 20)
    assert matches == ["audit 0"]
    engine.close()


def test_nothing_is_attached_unless_it_is_asked_for(seen: Watch) -> None:
    seen.capture.want(("execve",))
    assert "cap_capable" not in seen.capture.attached
    seen.capture.want(("execve", "capable"))
    assert "cap_capable" in seen.capture.attached
    seen.capture.want(("execve",))
    assert "cap_capable" not in seen.capture.attached


def test_all_else_is_captured_where_the_kernel_is_taken_to_lack_the_tracepoint(
    watch: Start, scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "unavailable", lambda: frozenset({"capable"}))
    seen = watch()
    assert "cap_capable" not in seen.capture.attached
    scope.run("true")
    assert "execve" in {record.type for record in seen.records()}
