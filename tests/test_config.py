"""``config check``: every setting with its source, every fault at once, no secret, and nothing started."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest

from app.access.token import MAX_TOKEN
from app.cli import main
from app.config import Report, check_config
from app.settings import Settings, load
from tests.support.certificates import Ca

pytestmark = pytest.mark.usefixtures("clean_environment")


def report_of(flags: dict[str, Any], environment: dict[str, str] | None = None) -> Report:
    """The report about flags and an environment, which is not this process's."""
    given = environment or {}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        return check_config(load(flags), flags, given)


def listed(report: Report) -> dict[str, tuple[str, str]]:
    """The value and the source of each setting."""
    rows = [line.split() for line in report.text.splitlines() if line.startswith("  ")]
    return {row[0]: (row[1], row[2]) for row in rows}


def test_every_setting_with_its_source() -> None:
    """A flag overrides a variable, whatever its case; the rest are defaults, with their units."""
    report = report_of(
        {"linger": "90s", "max_feeds": "7"},
        {"GATEWAY_MAX_FEEDS": "8", "gateway_log_bytes": "1MiB", "FORWARDED_ALLOW_IPS": "10.0.0.1"},
    )
    found = listed(report)

    assert (report.status, report.notes) == (0, [])
    assert list(found) == list(Settings.model_fields)
    assert found["linger"] == ("90s", "--linger")
    assert found["max_feeds"] == ("7", "--max-feeds")
    assert found["log_bytes"] == ("1MiB", "gateway_log_bytes")
    assert found["trusted_proxies"] == ("10.0.0.1", "FORWARDED_ALLOW_IPS")
    assert found["max_feed_bytes"] == ("256MiB", "default")
    assert (found["tls_cert"], found["epoch"]) == (("none", "default"), ("''", "default"))
    assert report.text.endswith("\n\nok: serve would start with these settings\n")


def test_all_faults_at_once(tmp_path: Path) -> None:
    """A line for each file that cannot be used, of every part of the gateway."""
    (tmp_path / "policy").write_text("roles: {a: {reed: []}}")
    (tmp_path / "long").write_text("x" * (MAX_TOKEN + 1))
    files = {
        "token_file": tmp_path / "long",
        "policy_file": tmp_path / "policy",
        "tls_cert": tmp_path / "none.crt",
        "tls_key": tmp_path / "none.key",
        "etcd_user": "gateway",
        "etcd_password_file": tmp_path / "none",
    }
    report = report_of({name: str(value) for name, value in files.items()})

    assert report.status == 2
    assert "ok:" not in report.text
    assert listed(report)["tls_cert"] == (str(tmp_path / "none.crt"), "--tls-cert")
    text = "\n".join(report.notes)
    for named in ("GATEWAY_TOKEN_FILE", "GATEWAY_TLS_CERT", "GATEWAY_ETCD_PASSWORD_FILE"):
        assert named in text
    (tmp_path / "long").write_text("x" * 40)
    assert "GATEWAY_POLICY_FILE" in "\n".join(report_of({name: str(value) for name, value in files.items()}).notes)


def test_the_place_of_the_hubs_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers, serve needs a folder for a socket. The check looks for it, and leaves nothing there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert report_of({"workers": "2"}).status == 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    report = report_of({"workers": "2"})

    assert (report.status, report_of({"workers": "1"}).status) == (2, 0)
    assert "GATEWAY_WORKERS (--workers)" in "\n".join(report.notes)


def test_the_files_of_an_edge(tmp_path: Path) -> None:
    """A gateway in front of a gateway reads its token at the start, too."""
    file = tmp_path / "none"
    report = report_of({"upstream": "http://127.0.0.1:8080", "upstream_token_file": str(file)})

    assert report.status == 2
    (note,) = report.notes
    assert note.startswith(f"GATEWAY_UPSTREAM_TOKEN_FILE (--upstream-token-file): cannot read {file}: ")


def test_what_the_files_say(tmp_path: Path) -> None:
    """When the certificate expires; that an issuer's keys are not fetched."""
    own = Ca(tmp_path).sign("gateway")
    flags = {
        "tls_cert": str(own.cert),
        "tls_key": str(own.key),
        "jwt_issuer": "https://id.example",
        "jwt_audience": "gateway",
        "jwt_jwks": "https://id.example/keys?secret=hunter2",
    }
    report = report_of(flags)

    assert (report.status, report.notes) == (0, [])
    assert "\nthe TLS certificate expires at 2" in report.text
    assert "\nthe issuer's keys are fetched when the gateway runs; they are not checked here\n" in report.text
    assert "hunter2" not in report.text
    assert listed(report)["jwt_jwks"] == ("https://id.example/keys?***", "--jwt-jwks")


def test_no_secret_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the content of a file, nor a password in a URL, nor the value of an unknown variable."""
    (tmp_path / "token").write_text("hunter2-hunter2-hunter2")
    report = report_of(
        {"token_file": str(tmp_path / "token")}, {"GATEWAY_ETCD_PASSWORD": "hunter2", "GATEWAY_LINGR": "hunter2"}
    )
    # A URL with a password is refused as well, and the listing is printed all the same.
    status = main(["config", "check", "--jwt-jwks", "https://user:hunter2@id.example/keys"])
    printed = capsys.readouterr()

    assert report.notes == [
        "warning: GATEWAY_ETCD_PASSWORD is not a setting; did you mean GATEWAY_ETCD_PASSWORD_FILE?",
        "warning: GATEWAY_LINGR is not a setting; did you mean GATEWAY_LINGER?",
    ]
    assert status == 2
    assert "GATEWAY_JWT_JWKS (--jwt-jwks): is not a URL" in printed.err
    assert "https://***@id.example/keys" in printed.out
    assert "hunter2" not in report.text + "".join(report.notes) + printed.out + printed.err


def test_warnings_of_the_start_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """What serve would log is a note here, and not a line of the log."""
    report = report_of({"host": "0.0.0.0", "allow_prefixes": ""})

    assert report.status == 0
    assert report.notes == ["warning: no access control: everybody who reaches the port may read the allowed prefixes"]
    assert caplog.records == []
    assert logging.getLogger("gateway").propagate


def test_settings_that_cannot_be_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    """They have no effective values: a line for each, as serve prints it."""
    status = main(["config", "check", "--linger", "soon", "--port", "x"])
    printed = capsys.readouterr()

    assert (status, printed.out) == (2, "")
    assert [line.split(":")[1] for line in printed.err.splitlines()] == [
        " GATEWAY_PORT (--port)",
        " GATEWAY_LINGER (--linger)",
    ]


def test_version_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """As people type it who do not know ``--version``, which prints the same."""
    assert main(["version"]) == 0
    told = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == told
