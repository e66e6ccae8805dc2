"""What doctor finds on this host, and on hosts that lack something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vedette.bpf import doctor
from vedette.bpf.btf import BtfError


@pytest.mark.bpf
def test_this_host_can_capture() -> None:
    checks = doctor.run_checks()
    assert [check for check in checks if check.status == "fail"] == []
    assert doctor.can_capture(checks)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert all(bool(check.cure) == (check.status != "ok") for check in checks)
    assert next(check for check in checks if check.name == "kernel").found.startswith(
        os.uname().release
    )


@pytest.mark.bpf
def test_without_rights_the_cure_is_named() -> None:
    code = """if True:
        import os
        os.setuid(65534)
        from vedette.bpf import doctor
        checks = doctor.run_checks()
        print(doctor.can_capture(checks))
        for check in checks:
            print(check.name, check.status, check.cure)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False\n")
    assert "capabilities fail run as root" in done.stdout
    assert "raw tracepoint fail run as root" in done.stdout
    assert "kernel ok" in done.stdout


def test_missing_headers_and_types_fail_with_a_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_types() -> None:
        raise BtfError("absent")

    monkeypatch.setattr(doctor, "headers_folder", lambda: None)
    monkeypatch.setattr(doctor.Btf, "load", no_types)
    checks = {check.name: check for check in doctor.run_checks()}
    assert checks["kernel headers"].status == checks["BTF"].status == "fail"
    assert "apt-get install linux-headers-" in checks["kernel headers"].cure
    assert not doctor.can_capture(checks.values())


def test_a_kernel_that_is_taken_to_lack_the_tracepoint_is_told_of_with_its_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "unavailable", lambda: frozenset({"capable"}))
    check = {check.name: check for check in doctor.run_checks()}["use of capabilities"]
    assert (check.status, check.cure) == ("warn", "boot a kernel of version 6.14 or later")
    assert "matchCapabilities) never match" in check.found
    monkeypatch.setattr(doctor, "unavailable", frozenset)
    monkeypatch.setattr(doctor, "accounting", lambda: {"ACCOUNTING_END": "0ull"})
    check = {check.name: check for check in doctor.run_checks()}["use of capabilities"]
    assert check.status == "warn" and "sysctl kernel.kptr_restrict" in check.cure


def test_a_check_is_plain_data() -> None:
    check = doctor.Check("kernel", "ok", "6.1")
    assert check.as_dict() == {"name": "kernel", "status": "ok", "found": "6.1", "cure": ""}
    assert doctor.can_capture([check, doctor.Check("bpffs", "warn", "not mounted", "mount it")])


def test_headers_are_found_where_bcc_looks() -> None:
    found = doctor.headers_folder()
    assert found is not None
    assert found == Path("/sys/kernel/kheaders.tar.xz") or os.uname().release in str(found)
