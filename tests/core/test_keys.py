"""Key files: what is written is read, and what could be misused is refused with its cure."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from vedette.core import keys


def test_a_pair_is_read_as_it_was_written_and_only_its_owner_may(tmp_path: Path) -> None:
    pair = keys.make_pair()
    path = tmp_path / "host.key"
    keys.write_pair(path, pair)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.read_pair(path) == pair


def test_a_pair_does_not_show_its_secret() -> None:
    pair = keys.make_pair()
    assert pair.secret not in repr(pair)
    assert pair.public in repr(pair)


def test_a_pair_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    keys.write_pair(path, keys.make_pair())
    before = path.read_bytes()
    with pytest.raises(keys.KeyFileError, match="exists"):
        keys.write_pair(path, keys.make_pair())
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "host.key"
    pair = keys.make_pair()
    keys.write_pair(path, pair)
    path.chmod(mode)
    if mode == 0o640 and os.geteuid() == 0:
        # Of root's a group may read, that of a service.
        assert keys.read_pair(path) == pair
        return
    with pytest.raises(keys.KeyFileError, match=f"mode {mode:04o}.*chmod 600"):
        keys.read_pair(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_pair_for_a_service_is_readable_by_its_group(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    pair = keys.make_pair()
    keys.write_pair(path, pair, "daemon")
    found = path.stat()
    assert found.st_mode & 0o777 == 0o640
    assert (found.st_uid, found.st_gid) == (0, grp.getgrnam("daemon").gr_gid)
    assert keys.read_pair(path) == pair
    with pytest.raises(keys.KeyFileError, match="no group nosuch"):
        keys.write_pair(tmp_path / "other.key", pair, "nosuch")
    assert not (tmp_path / "other.key").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_secret_that_another_user_owns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.key"
    keys.write_pair(path, keys.make_pair())
    os.chown(path, 12345, 0)
    with pytest.raises(keys.KeyFileError, match="user 12345"):
        keys.read_pair(path)


def _pair_file(path: Path, text: bytes) -> Path:
    path.write_bytes(text)
    path.chmod(0o600)
    return path


def test_files_that_hold_no_pair_are_refused(tmp_path: Path) -> None:
    one, other = keys.make_pair(), keys.make_pair()
    for text, reason in (
        (b"", "has 0 lines"),
        (one.public.encode(), "has 1 lines"),
        (f"{one.public}\n{one.secret}\n{one.public}".encode(), "has 3 lines"),
        (f"{one.public}\n# {one.secret}\n".encode(), "has 1 lines"),
        (f"{one.public}\n{one.secret[:-1]}\n".encode(), ":2: not a CURVE key"),
        (f"{one.public}\n{'%' * 40}\n".encode(), ":2: not a CURVE key"),
        (f"{one.public}\n{'~' * 40}\n".encode(), ":2: not a CURVE key"),
        (f"{one.public}\n{other.secret}\n".encode(), "not that of the secret"),
        (b"\n\xff\xfe\n", ":2: not ASCII"),
        (b"x" * 5000, "longer than"),
    ):
        path = _pair_file(tmp_path / "key", text)
        with pytest.raises(keys.KeyFileError) as caught:
            keys.read_pair(path)
        assert reason in str(caught.value)
        assert one.secret not in str(caught.value)
    with pytest.raises(keys.KeyFileError, match="No such file"):
        keys.read_pair(tmp_path / "nothing")
    with pytest.raises(keys.KeyFileError, match="cannot be read"):
        keys.read_pair(tmp_path)


def test_the_allow_list_binds_a_key_to_a_host(tmp_path: Path) -> None:
    one, other = keys.make_pair().public, keys.make_pair().public
    path = tmp_path / "hosts.allow"
    path.write_text(f"# hosts\n\n{one} web-1\n{other}   db.2\n")
    assert keys.read_allow_list(path) == {
        one: keys.Allowed("web-1"),
        other: keys.Allowed("db.2"),
    }


def test_an_allow_list_with_a_fault_is_refused_with_its_line(tmp_path: Path) -> None:
    one, other = keys.make_pair().public, keys.make_pair().public
    path = tmp_path / "hosts.allow"
    for text, reason in (
        (f"{one}\n", ":1: '' is no host id"),
        (f"{one} a b\n", ":1: 'a b' is no host id"),
        (f"{one} {'x' * 65}\n", ":1: "),
        (f"{one} a\n{one} b\n", ":2: this key stands for a already"),
        (f"{one} a\n{other} a\n", ":2: a has a key in line 1 already"),
        ("nonsense a\n", ":1: not a CURVE key"),
    ):
        path.write_text(text)
        with pytest.raises(keys.KeyFileError) as caught:
            keys.read_allow_list(path)
        assert f"{path}{reason}" in str(caught.value)


def test_a_key_with_an_end_is_valid_until_then(tmp_path: Path) -> None:
    old, new = keys.make_pair().public, keys.make_pair().public
    path = tmp_path / "hosts.allow"
    path.write_text(f"{old} web-1 until=1970-01-01T00:01:40Z\n{new} web-1\n")
    allowed = keys.read_allow_list(path)
    assert allowed == {old: keys.Allowed("web-1", 100.0), new: keys.Allowed("web-1")}
    assert allowed[old].valid(99.9) and not allowed[old].valid(100.0)
    assert allowed[new].valid(1e12)
    for end, reason in (("soon", "no time"), ("2026-11-24T08:00:00", "no time zone")):
        path.write_text(f"{old} web-1 until={end}\n")
        with pytest.raises(keys.KeyFileError, match=f":1: .*{reason}"):
            keys.read_allow_list(path)


def test_a_reader_is_no_host(tmp_path: Path) -> None:
    path = tmp_path / "allow"
    keys.enroll(path, "web-1", keys.make_pair().public)
    reader, new = keys.make_pair().public, keys.make_pair().public
    keys.enroll(path, "alice", reader, keys.READER)
    assert list(keys.read_allow_list(path, keys.READER).items()) == [
        (reader, keys.Allowed("alice", None, "reader"))
    ]
    assert [one.host_id for one in keys.read_allow_list(path, keys.AGENT).values()] == ["web-1"]
    keys.rotate(path, "alice", new, 2_000_000_000, 1_000_000_000)
    readers = keys.read_allow_list(path, keys.READER)
    assert {key: one.until_s for key, one in readers.items()} == {reader: 2_000_000_000, new: None}
    assert keys.revoke(path, "alice") == 2
    path.write_text(f"{reader} alice role=king\n")
    with pytest.raises(keys.KeyFileError, match="role=king: a role is one of agent, reader"):
        keys.read_allow_list(path)


def test_enroll_rotate_and_revoke_change_one_host_and_leave_the_rest(tmp_path: Path) -> None:
    one, two, three, other = (keys.make_pair().public for _ in range(4))
    path = tmp_path / "hosts.allow"
    keys.enroll(path, "db", other)
    path.write_text(f"# the fleet\n{path.read_text()}")
    path.chmod(0o640)
    keys.enroll(path, "web", one)
    keys.rotate(path, "web", two, until_s=1000, now_s=500)
    assert keys.read_allow_list(path) == {
        other: keys.Allowed("db"),
        one: keys.Allowed("web", 1000.0),
        two: keys.Allowed("web"),
    }
    # The first key keeps its earlier end; then it is over, and leaves with the next change.
    keys.rotate(path, "web", three, until_s=2000, now_s=600)
    assert keys.read_allow_list(path)[one].until_s == 1000
    assert keys.read_allow_list(path)[two].until_s == 2000
    keys.rotate(path, "web", one := keys.make_pair().public, until_s=1500, now_s=1500)
    assert keys.read_allow_list(path) == {
        other: keys.Allowed("db"),
        one: keys.Allowed("web"),
    }
    assert keys.revoke(path, "web") == 1
    assert path.read_text() == f"# the fleet\n{other} db\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_changes_that_cannot_be_meant_are_refused_and_change_nothing(tmp_path: Path) -> None:
    one, two = keys.make_pair().public, keys.make_pair().public
    path = tmp_path / "hosts.allow"
    with pytest.raises(keys.KeyFileError, match="No such file"):
        keys.revoke(path, "web")
    keys.enroll(path, "web", one)
    before = path.read_text()
    for change, reason in (
        (lambda: keys.enroll(path, "web", two), "enrolled already"),
        (lambda: keys.enroll(path, "db", one), "stands for web already"),
        (lambda: keys.enroll(path, "no blanks", two), "is no host id"),
        (lambda: keys.enroll(path, "db", "nonsense"), "not a CURVE key"),
        (lambda: keys.rotate(path, "db", two, 10, 5), "not enrolled"),
        (lambda: keys.rotate(path, "web", one, 10, 5), "stands for web already"),
        (lambda: keys.revoke(path, "db"), "not enrolled"),
    ):
        with pytest.raises(keys.KeyFileError, match=reason):
            change()
        assert path.read_text() == before
    path.write_text("nonsense\n")
    with pytest.raises(keys.KeyFileError, match=":1: not a CURVE key"):
        keys.enroll(path, "web", one)
    assert path.read_text() == "nonsense\n"


def test_many_who_enroll_at_once_are_all_in_the_list(tmp_path: Path) -> None:
    path = tmp_path / "hosts.allow"
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            try:
                for more in range(5):
                    keys.enroll(path, f"host-{number}-{more}", keys.make_pair().public)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert len(keys.read_allow_list(path)) == 40
