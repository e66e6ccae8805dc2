"""What the record decoder is fuzzed with: any bytes, through engine and twin's decoder alike.

Every byte string is whole records, malformed ones, and what ends a feed. The engine must count and
consume just what records.decode says; that nothing is read out of bounds is for the sanitizers
to see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vedette.core import layout
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.expr import FieldRef, Predicate
from vedette.core.fields import FIELDS
from vedette.core.records import RecordError, build, decode
from vedette.core.rules import Rule

CORPUS: Final = Path(__file__).parent / "corpus"
ENGINE_INPUTS_MAX: Final = 2000
"""An engine is replaced after so many inputs, so that a finding depends on few of them."""

_COMPUTED: Final = (
    "tolower(fd.name) contains etc",
    "proc.name = val(proc.pname)",
    "len(fd.name) > 3 and basename(fd.name) != val(proc.exe)",
    "concat(proc.cwd, fd.filename) startswith val(proc.cwd)",
    "b64(fd.filename) exists or fd.name icontains val(proc.args)",
    "fd.name glob /*/[a-c]*",
)


def rules() -> list[Rule]:
    """Rules that look at every field, however it comes about."""
    found = [
        Rule(name, Predicate(FieldRef(name), "exists"), "", 4)
        for name, field in FIELDS.items()
        if field.captured and not field.is_absent
    ]
    return found + [Rule(text, parse_condition(text), "", 4) for text in _COMPUTED]


RULES: Final = rules()


def engine() -> Engine:
    """An engine with tables so small that everything in them is replaced all the time."""
    made = Engine(
        RULES, on_match=lambda *match: None, class_bytes_max=8192, verdict_bytes_max=8192,
        processes_max=64,
    )  # fmt: skip
    made.add_process(Process(pid=1, comm=b"init", cwd=b"/"))
    return made


class Feed:
    """Feeds inputs to an engine and holds its counts to the decoder's."""

    def __init__(self) -> None:
        self.engine = engine()
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        """Raises AssertionError where engine and decoder differ."""
        self.inputs += 1
        if self.inputs > ENGINE_INPUTS_MAX:
            assert self.engine.close() == 0, "memory was lost"
            self.engine, self.inputs = engine(), 1
        at = good = bad = 0
        while at < len(data):
            try:
                at += decode(data, at).size
                good += 1
            except RecordError as error:
                bad += 1
                if error.size == 0:
                    break
                at += error.size
        before = self.engine.stats()
        assert self.engine.feed(data) == at
        after = self.engine.stats()
        assert after["records"] - before["records"] == good
        assert after["malformed"] - before["malformed"] == bad


def seeds() -> dict[str, bytes]:
    """What a corpus begins with: a record of each type, and each kind of damage to one."""
    made: dict[str, bytes] = {}
    for name, number in (layout.TYPES | layout.STATE_TYPES).items():
        struct = layout.STRUCT_OF_TYPE[number]
        blobs = {
            field.removesuffix("_len"): b"/etc/x\0y\0"
            for field in layout.STRUCTS[struct]
            if field.endswith("_len")
        }
        made[name] = build(name, pid=7, **blobs)  # type: ignore[arg-type]
    record = made["openat"]
    made["truncated"] = record[:-5]
    made["overlong"] = record[:8] + (1 << 20).to_bytes(4, "little") + record[12:]
    made["wrong-type"] = record[:12] + b"\xff\xff" + record[14:] + record
    at = layout.STRUCTS["open"]["path_len"][1]
    made["wrong-length"] = record[:at] + b"\xff\x0f" + record[at + 2 :] + record
    made["several"] = b"".join(made[name] for name in ("clone", "execve", "openat", "procexit"))
    return made


one = Feed()
