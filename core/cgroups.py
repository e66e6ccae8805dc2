"""What the path of a cgroup says: the container, the systemd unit and the slice of a process."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

HOST: Final = b"host"
"""container.id of what runs in no container."""

_ID = rb"([0-9a-f]{64})"
# docker, containerd (nerdctl and CRI), CRI-O and podman name cgroups by the container's id: alone
# below a folder of theirs (cgroupfs driver), as `NAME-ID.scope` (systemd driver), or as
# `SLICE:NAME:ID`. What they run beside a container (`libpod-conmon-ID.scope`) is the host's.
_BY_ID: Final = re.compile(
    rb"(?:(?:docker|cri-containerd|nerdctl|crio|libpod|podman)-)?" + _ID + rb"(?:\.scope)?"
    rb"|[^:]+:[a-z-]+:" + _ID
)
_SHORT: Final = 12
_LXC: Final = re.compile(rb"lxc\.payload\.(.+)", re.DOTALL)
_NSPAWN: Final = re.compile(rb"machine-(.+)\.scope|systemd-nspawn@(.+)\.service", re.DOTALL)
_VIRTUAL: Final = (rb"qemu\x2d", rb"lxc\x2d")
"""Machines of libvirt: what runs in the cgroup is the hypervisor, a process of the host."""

# systemd.unit(5); a slice is none of them.
_UNIT_SUFFIXES: Final = (
    b".service", b".scope", b".socket", b".mount", b".swap", b".automount", b".device", b".path",
    b".target", b".timer",
)  # fmt: skip
_ROOT_SLICE: Final = b"-.slice"


class Placement(NamedTuple):
    """Where a process runs.

    container  id of the container, as Falco shows it (twelve digits), or its name; b"host"
    unit       the systemd unit, as sd_pid_get_unit(3) gives it; None: none
    slice      the systemd slice, as sd_pid_get_slice(3) gives it; None: none
    """

    container: bytes
    unit: bytes | None
    slice: bytes | None


NOWHERE: Final = Placement(HOST, None, None)
"""What is said of a process whose cgroup is not known."""


def _unescape(name: bytes) -> bytes:
    r"""Undo systemd-escape(1): ``\x2d`` is a dash."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), name)


def _container(parts: list[bytes]) -> bytes:
    for at in range(len(parts) - 1, -1, -1):
        part = parts[at]
        if found := _BY_ID.fullmatch(part):
            return (found[1] or found[2])[:_SHORT]
        if found := _LXC.fullmatch(part):
            return found[1]
        if at and parts[at - 1] in (b"lxc", b"lxc.payload"):
            return part
        if found := _NSPAWN.fullmatch(part):
            name = found[1] or found[2]
            if name.startswith(_VIRTUAL) or parts[at + 1 : at + 2] == [b"supervisor"]:
                continue
            return _unescape(name)
    return HOST


@lru_cache(maxsize=1024)
def placement(path: bytes) -> Placement:
    """Read a cgroup's path below the root of the v2 hierarchy, such as ``/system.slice/x.service``.

    Of containers in containers the innermost counts.
    """
    parts = [part for part in path.split(b"/") if part]
    unit = below = None
    for part in parts:
        name = part.removeprefix(b"_")  # systemd's escape of names that the kernel might use
        if name.endswith(b".slice"):
            below = name
            continue
        if name.endswith(_UNIT_SUFFIXES) and not name.startswith(b"."):
            unit = name
        break
    if unit is not None and below is None:
        below = _ROOT_SLICE
    return Placement(_container(parts), unit, below)
