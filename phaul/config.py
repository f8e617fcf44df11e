"""What can be configured, and the defaults. Read by `cli` (options win over the environment) and by `agent`.

Every field of `AgentConfig` can be set as PHAUL_<NAME> in the environment, which is how the systemd unit does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_PEER_PORT = 7428  # "PHAU" on a telephone's keys; unassigned by IANA
DEFAULT_SOCKET = Path("/run/phaul/agent.sock")
DEFAULT_POLICY = Path("/etc/phaul/policy.toml")
AUDIT_FILE = "audit.jsonl"  # in the state directory, where nothing else is said
PROTOCOL_VERSION = 1  # of proto/phaul/v1; agents of different ones refuse each other


class AgentConfig(BaseSettings):
    """How one agent runs. Paths are made by the agent, mode 0700."""

    model_config = SettingsConfigDict(env_prefix="PHAUL_", frozen=True)

    socket: Path = Field(default=DEFAULT_SOCKET, description="Unix socket for the person on this host")
    listen: str = Field(default=f"127.0.0.1:{DEFAULT_PEER_PORT}", description="HOST:PORT for other agents")
    page_port: int = Field(
        default=DEFAULT_PEER_PORT + 1, ge=0, le=65535, description="port for memory pages, on the same address; 0: any"
    )
    page_encryption: Literal["on", "off"] = Field(
        default="on", description="encrypt memory on its way; off, on both hosts, is for a network that is trusted"
    )
    insecure: bool = Field(default=False, description="allow peers off loopback without encryption or authentication")
    runtime_dir: Path = Field(default=Path("/run/phaul"), description="images under way; must be in memory (tmpfs)")
    state_dir: Path = Field(default=Path("/var/lib/phaul"), description="what is known of migrations past")
    policy: Path = Field(
        default=DEFAULT_POLICY, description="who may do what here; without this file root, and every trusted host"
    )
    audit_log: Path | None = Field(
        default=None, description="who did what, when, and how it ended; audit.jsonl in the state directory"
    )
    children_group: Path | None = Field(
        default=None, description="control group (v2), delegated to the agent, in which CRIU and workloads get theirs"
    )
    hooks_dir: Path = Field(default=Path("/etc/phaul/hooks.d"), description="action scripts, one directory a stage")
    hook_timeout: float = Field(default=30.0, gt=0, description="seconds that an action script may take")
    exit_when_idle: int = Field(
        default=0, ge=0, description="seconds without anything to do after which the agent ends; 0: it never does"
    )
    criu: str = Field(default="criu", description="CRIU's program, a name in PATH or a path")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @property
    def audit_path(self) -> Path:
        """Where the audit log is."""
        return self.audit_log or self.state_dir / AUDIT_FILE
