"""What can be configured, and from where."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from phaul.agent.destination import parse_destination
from phaul.agent.trust import is_loopback
from phaul.config import DEFAULT_PEER_PORT, AgentConfig


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AgentConfig.model_fields:
        monkeypatch.delenv(f"PHAUL_{name.upper()}", raising=False)


def test_who_configures_nothing_is_safe() -> None:
    config = AgentConfig()
    assert is_loopback(parse_destination(config.listen).host)
    assert not config.insecure
    assert parse_destination(config.listen).port == DEFAULT_PEER_PORT
    assert config.page_port == DEFAULT_PEER_PORT + 1


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("socket", "/tmp/a.sock", Path("/tmp/a.sock")),
        ("listen", "[fd00::1]:7428", "[fd00::1]:7428"),
        ("page_port", "0", 0),
        ("page_encryption", "off", "off"),
        ("insecure", "1", True),
        ("policy", "/srv/policy.toml", Path("/srv/policy.toml")),
        ("audit_log", "/srv/audit.jsonl", Path("/srv/audit.jsonl")),
        ("runtime_dir", "/run/x", Path("/run/x")),
        ("state_dir", "/var/x", Path("/var/x")),
        ("children_group", "/sys/fs/cgroup/x", Path("/sys/fs/cgroup/x")),
        ("hooks_dir", "/etc/hooks", Path("/etc/hooks")),
        ("hook_timeout", "2.5", 2.5),
        ("exit_when_idle", "60", 60),
        ("criu", "/opt/criu", "/opt/criu"),
        ("log_level", "debug", "debug"),
        ("log_format", "json", "json"),
    ],
)
def test_every_field_can_be_set_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"PHAUL_{name.upper()}", text)
    assert getattr(AgentConfig(), name) == value


def test_every_field_is_tried_here() -> None:
    (mark,) = test_every_field_can_be_set_in_the_environment.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _, _ in mark.args[1]} == set(AgentConfig.model_fields)


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHAUL_CRIU", "theirs")
    assert AgentConfig(criu="ours").criu == "ours"


@pytest.mark.parametrize(
    ("name", "text"), [("page_port", "65536"), ("page_port", "-1"), ("log_level", "loud"), ("insecure", "perhaps")]
)
def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"PHAUL_{name.upper()}", text)
    with pytest.raises(ValidationError, match=name):
        AgentConfig()


def test_a_configuration_stays_as_it_is() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AgentConfig().criu = "other"
