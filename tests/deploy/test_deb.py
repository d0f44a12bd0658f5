"""The Debian package: what is in it, and what its scripts do when it comes, is replaced and goes."""
import gzip
import shutil

import pytest
from helpers import DEPLOY, ROOT, UNIT, run, unit_setting, version

SCRIPTS = DEPLOY / "debian"


@pytest.fixture(scope="session")
def package(static):
    run(DEPLOY / "build-deb.sh", cwd=ROOT)
    arch = run("dpkg", "--print-architecture").stdout.strip()
    return ROOT / "target" / "deb" / f"shared-socket_{version()}_{arch}.deb"


def test_what_is_in_it(package, tmp_path):
    run("dpkg-deb", "-x", package, tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()}
    assert run(tmp_path / "usr/bin/shared-socket", "--version").stdout.strip() == f"shared-socket {version()}"
    assert {"usr/bin/kubectl-shared_socket", "usr/lib/systemd/system/shared-socket.service", "etc/shared-socket/agent.yaml",
            "usr/share/bash-completion/completions/shared-socket", "usr/share/zsh/vendor-completions/_shared-socket",
            "usr/share/fish/vendor_completions.d/shared-socket.fish", "usr/share/man/man1/shared-socket.1.gz",
            "usr/share/man/man1/shared-socket-attach.1.gz", "usr/share/doc/shared-socket/copyright"} <= files
    page = gzip.decompress((tmp_path / "usr/share/man/man1/shared-socket-attach.1.gz").read_bytes())
    assert b".TH" in page
    copyright_ = (tmp_path / "usr/share/doc/shared-socket/copyright").read_text()
    assert "@BSD@" not in copyright_ and " Redistribution and use in source" in copyright_
    stray = [f for f in files if not f.startswith(("usr/bin/", "usr/lib/systemd/", "usr/share/", "etc/shared-socket/"))]
    assert not stray
    assert run("dpkg-deb", "-f", package, "Version").stdout.strip() == version()
    assert run("dpkg-deb", "-f", package, "Depends").stdout.strip() == ""  # the binary is static
    owners = {line.split()[1] for line in run("dpkg-deb", "-c", package).stdout.splitlines()}
    assert owners == {"root/root"}


def test_it_comes_and_goes(package, tmp_path):
    """dpkg itself, in a root of its own. Its scripts see DPKG_ROOT then, and leave this machine alone."""
    admin = tmp_path / "var/lib/dpkg"
    (admin / "info").mkdir(parents=True)
    (admin / "updates").mkdir()
    (admin / "status").write_text("")
    dpkg = ["dpkg", f"--root={tmp_path}", "--force-script-chrootless", "--force-not-root", f"--log={tmp_path}/log"]
    state = lambda: run("dpkg-query", f"--admindir={admin}", "-W", "-f", "${db:Status-Status}", "shared-socket",  # noqa: E731
                        check=False).stdout
    config, binary = tmp_path / "etc/shared-socket/agent.yaml", tmp_path / "usr/bin/shared-socket"
    run(*dpkg, "-i", package)
    assert state() == "installed" and binary.exists()
    config.write_text("mode: opt-out\n")
    run(*dpkg, "--force-confold", "-i", package)  # the next version
    assert config.read_text() == "mode: opt-out\n"
    learned = tmp_path / "var/lib/shared-socket/hazards.json"
    learned.parent.mkdir(parents=True)
    learned.write_text("{}")
    run(*dpkg, "-r", "shared-socket")
    assert state() == "config-files" and not binary.exists() and config.exists() and learned.exists()
    run(*dpkg, "-i", package)
    run(*dpkg, "-P", "shared-socket")
    assert state() in ("", "not-installed")
    assert not config.parent.exists() and not learned.parent.exists() and not binary.exists()


@pytest.fixture
def script(tmp_path):
    """Runs a maintainer script; what `shared-socket` was called with, and what the script said."""
    stub = tmp_path / "shared-socket"
    stub.write_text('#!/bin/sh\necho "$*" >>"$CALLS"\nexit "${CODE:-0}"\n')
    stub.chmod(0o755)
    for name in ("systemctl", "deb-systemd-invoke"):  # this machine's services are none of this test's
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    calls, pins = tmp_path / "calls", tmp_path / "pins"

    def go(name, *args, attached=True, code=0, **env):
        calls.write_text("")
        pins.mkdir(exist_ok=True) if attached else shutil.rmtree(pins, ignore_errors=True)
        done = run("/bin/sh", SCRIPTS / name, *args, check=False, env={
            "PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "CODE": str(code), "SHARED_SOCKET_PIN_DIR": str(pins),
            **env})
        assert done.returncode == 0, done.stderr
        return calls.read_text().splitlines(), done.stderr
    return go


def test_an_upgrade_leaves_what_is_accelerated(script):
    for args in (["prerm", "upgrade", "9"], ["postrm", "upgrade", "9"], ["prerm", "failed-upgrade", "9"]):
        assert script(*args) == ([], "")


def test_removal_goes_back_to_tcp_first(script):
    assert script("prerm", "remove") == (["detach --all --timeout 30"], "")
    assert script("prerm", "remove", attached=False) == ([], "")  # nothing to go back from
    assert script("prerm", "remove", DPKG_ROOT="/elsewhere") == ([], "")  # another system's root
    calls, said = script("prerm", "remove", code=4)
    assert len(calls) == 1 and "stay fast until they end" in said
    calls, said = script("prerm", "remove", code=1)  # removal goes on
    assert "detach failed (1)" in said


def test_the_service(package, tmp_path):
    run("dpkg-deb", "-x", package, tmp_path)
    command, *args = unit_setting("ExecStart")
    assert (tmp_path / command.lstrip("/")).exists()
    assert args == ["agent", "--config", "/etc/shared-socket/agent.yaml"] and (tmp_path / args[2].lstrip("/")).exists()
    assert unit_setting("Type") == ["notify"] and unit_setting("StateDirectory") == ["shared-socket"]
    assert unit_setting("NoNewPrivileges") == ["yes"]
    # they would take away what it needs: the address in /proc/kallsyms, and the workloads' /proc
    assert not unit_setting("ProtectKernelLogs") and not unit_setting("ProtectProc")
    if shutil.which("systemd-analyze"):
        here = tmp_path / "shared-socket.service"
        text = UNIT.read_text().replace("ExecStart=/usr", f"ExecStart={tmp_path}/usr")
        here.write_text("\n".join(line for line in text.splitlines() if not line.startswith("Documentation=")))
        done = run("systemd-analyze", "verify", here, check=False)
        # it also says what is wrong with units of this machine
        assert "shared-socket" not in done.stderr, done.stderr
