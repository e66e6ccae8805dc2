"""The tree of processes around an alert, made of what signals say.

An alert carries the ancestors of its process (`proc.lineage`), as the agent's table had them when
it matched; other signals carry the process, its parent and what their rules name. So the tree has,
of some time around an alert on its host, the alert's ancestors, and all processes with signals that
stand above, below or beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from vedette.aggregator.store import StoredSignal

NODES_MAX: Final = 10_000
DEPTH_MAX: Final = 64
FIRST_PIDS: Final = 2
"""The host's first process and the kernel's threads' parent."""


class Ancestor(msgspec.Struct, array_like=True, frozen=True):
    """One of `proc.lineage`."""

    pid: int
    program: str
    cmdline: str


_lineage = msgspec.json.Decoder(list[Ancestor])


class Node:
    """A process.

    program, cmdline  as last heard of it; empty: not known
    signals           of it, the oldest first
    """

    __slots__ = ("children", "cmdline", "parent", "pid", "program", "signals", "user")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.program = ""
        self.cmdline = ""
        self.user = ""
        self.parent: int | None = None
        self.children: list[Node] = []
        self.signals: list[StoredSignal] = []


def lineage_of(signal: StoredSignal) -> list[Ancestor]:
    """Return the ancestors of a signal's process, the parent first, as far as they are known."""
    text = signal.fields.get("proc.lineage")
    if isinstance(text, str):
        try:
            return _lineage.decode(text)[:DEPTH_MAX]
        except msgspec.DecodeError:
            # A host may say what it likes.
            pass
    found: list[Ancestor] = []
    for level in range(1, DEPTH_MAX):
        pid = signal.fields.get("proc.ppid" if level == 1 else f"proc.apid[{level}]")
        if not isinstance(pid, int):
            break
        name = signal.fields.get("proc.pname" if level == 1 else f"proc.aname[{level}]", "")
        program = signal.fields.get(f"proc.aexepath[{level}]", name)
        cmdline = signal.fields.get(f"proc.acmdline[{level}]", name)
        found.append(Ancestor(pid, str(program), str(cmdline)))
    return found


class Forest:
    """Processes of one host by their pid, within a time that no pid comes twice in."""

    def __init__(self, signals: Iterable[StoredSignal]) -> None:
        self.nodes: dict[int, Node] = {}
        for signal in sorted(signals, key=lambda one: one.key):
            self._add(signal)
        for node in self.nodes.values():
            if node.parent is not None and node.parent in self.nodes:
                self.nodes[node.parent].children.append(node)

    def _node(self, pid: int) -> Node | None:
        found = self.nodes.get(pid)
        if found is None and len(self.nodes) < NODES_MAX:
            found = self.nodes[pid] = Node(pid)
        return found

    def _add(self, signal: StoredSignal) -> None:
        fields = signal.fields
        pid = fields.get("proc.pid")
        if not isinstance(pid, int):
            return
        node = self._node(pid)
        if node is None:
            return
        node.signals.append(signal)
        node.program = str(fields.get("proc.exepath") or fields.get("proc.name") or node.program)
        node.cmdline = str(fields.get("proc.cmdline") or node.cmdline)
        node.user = str(fields.get("user.name") or fields.get("user.uid") or node.user)
        below = node
        for ancestor in lineage_of(signal):
            if self._is_below(ancestor.pid, below.pid):
                break
            below.parent = ancestor.pid
            above = self._node(ancestor.pid)
            if above is None:
                return
            above.program = above.program or ancestor.program
            above.cmdline = above.cmdline or ancestor.cmdline
            below = above

    def _is_below(self, pid: int, of: int) -> bool:
        """Tell whether a process stands at or below another, so that it cannot be above it."""
        at: int | None = pid
        for _ in range(NODES_MAX):
            if at == of:
                return True
            node = None if at is None else self.nodes.get(at)
            if node is None:
                return False
            at = node.parent
        return True

    def root_of(self, pid: int) -> Node | None:
        """Return the topmost process above one."""
        node = self.nodes.get(pid)
        while node is not None and node.parent is not None and node.parent in self.nodes:
            node = self.nodes[node.parent]
        return node

    def path_to(self, pid: int) -> list[Node]:
        """Return a process and all above it, the topmost first."""
        found: list[Node] = []
        at: int | None = pid
        while at is not None and at in self.nodes:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return found[::-1]


def rows(forest: Forest, pid: int, *, whole: bool = False) -> Iterator[tuple[int, Node]]:
    """Return the tree around a process: depth and process, from the topmost down.

    whole  False: of what stands right below the host's first process, its own branch alone
    """
    root = forest.root_of(pid)
    own = {node.pid for node in forest.path_to(pid)}
    stack = [] if root is None else [(0, root)]
    seen: set[int] = set()
    while stack:
        depth, node = stack.pop()
        if node.pid in seen:
            continue
        seen.add(node.pid)
        yield depth, node
        below = node.children
        if node.pid <= FIRST_PIDS and not whole and node.pid in own and node.pid != pid:
            below = [child for child in below if child.pid in own]
        children = sorted(below, key=lambda child: (_first_ns(child), child.pid))
        stack += [(depth + 1, child) for child in reversed(children)]


def _first_ns(node: Node) -> int:
    return node.signals[0].time_ns if node.signals else 0


def node_json(depth: int, node: Node, alert: StoredSignal) -> dict[str, Any]:
    """Return a process as JSON is to show it."""
    return {
        "depth": depth,
        "pid": node.pid,
        "parent_pid": node.parent,
        "program": node.program,
        "cmdline": node.cmdline,
        "user": node.user,
        "is_alert": any(signal.id == alert.id for signal in node.signals),
        "signals": [
            {"id": signal.id, "time_ns": signal.time_ns, "rule": signal.rule}
            for signal in node.signals
        ],
    }
