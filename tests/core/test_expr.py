"""The expression tree."""

from __future__ import annotations

from vedette.core.expr import And, FieldRef, Not, Or, Predicate, predicates


def test_a_field_reference_reads_as_rules_write_it() -> None:
    assert str(FieldRef("proc.name")) == "proc.name"
    assert str(FieldRef("proc.aname", "2")) == "proc.aname[2]"
    assert str(FieldRef("fd.name", None, ("basename", "len"))) == "len(basename(fd.name))"
    inner = FieldRef("join", operands=(b'"\\', (FieldRef("proc.name"), b"x")))
    assert str(FieldRef("concat", operands=(inner, b"-"))) == (
        'concat(join("\\"\\\\", (proc.name, "x")), "-")'
    )


def test_plain_is_a_field_against_constants() -> None:
    name = FieldRef("proc.name")
    assert Predicate(name, "=", (b"sh",)).is_plain
    assert not Predicate(name, "=", (FieldRef("proc.pname"),)).is_plain
    assert not Predicate(FieldRef("proc.name", None, ("len",)), "=", (2,)).is_plain
    assert not Predicate(FieldRef("concat", operands=(name, b"x")), "exists").is_plain


def test_predicates_come_left_to_right_with_repeats() -> None:
    a, b, c = (Predicate(FieldRef(name), "exists") for name in "abc")
    tree = And((Or((a, Not(b))), Not(And((c, a)))))
    assert predicates(tree) == [a, b, c, a]


def test_equal_predicates_are_one() -> None:
    one = Predicate(FieldRef("proc.name"), "=", (b"sh",))
    same = Predicate(FieldRef("proc.name"), "=", (b"sh",))
    assert len({one, same}) == 1
    assert Predicate(FieldRef("proc.name"), "=", (b"bash",)) not in {one}
