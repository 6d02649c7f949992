"""The one reader of the environment. Every setting is `AUTOMAGIK_` plus its name in capitals, unless an alias is given."""

from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_config_path, user_data_path
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["ClientSettings", "Settings"]

_CommaList = Annotated[list[str], NoDecode]


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


class Settings(BaseSettings):
    """What a server, worker or database command runs with."""

    model_config = SettingsConfigDict(
        env_prefix="AUTOMAGIK_", extra="ignore", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    data_dir: Path = Field(default_factory=lambda: user_data_path("automagik"))
    """The data folder: the embedded database, the agents folder, whatever the platform writes."""
    database_url: SecretStr | None = None
    """`postgresql://USER:PASSWORD@HOST/NAME`; unset: SQLite in the data folder."""
    database_replica_url: SecretStr | None = None
    """A streaming replica of that PostgreSQL, from which lists are read; unset: the primary does it all."""
    database_pool_size: int = Field(default=10, ge=2, le=200)
    """Connections to PostgreSQL at the most for each process."""
    redis_url: SecretStr | None = None
    """`redis://:PASSWORD@HOST:6379/0`, for what instances tell each other and for rate limits; unset: PostgreSQL does both."""
    secret_key: SecretStr | None = None
    """The key that encrypts stored secrets: 32 random bytes in base64, the same on every host; unset: `secret.key` in the
    data folder. `NEW,OLD` while it is changed."""
    agents_dir: Path | None = None
    """Where agent files (Python or YAML) are found; unset: `agents` in the data folder."""

    host: str = "127.0.0.1"
    """The address that the server listens on."""
    port: int = Field(default=8881, ge=0, le=65535)
    """The port that the server listens on; 0 takes a free one."""
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """The largest request body that is read."""
    max_text_chars: int = Field(default=1_000_000, ge=1)
    """The longest text of one message, template or memory, in characters."""
    cors_origins: _CommaList = []
    """Origins (comma-separated) that browsers may call from; empty: none."""
    shutdown_grace_seconds: float = Field(default=10, ge=0)
    """How long a stopping server lets runs finish before it cancels them."""

    model: str | None = None
    """The default model, `provider:model`; unset: by the keys that are set, then a server on loopback, then `demo`."""
    fallback_models: _CommaList = []
    """Models (comma-separated) tried in order when the default model fails."""
    model_base_url: str | None = None
    """Where the default model's `openai-chat:` requests go, for any OpenAI-compatible server."""
    model_api_key: SecretStr | None = None
    """The key that goes with `model_base_url`."""
    discover_local_models: bool = True
    """Whether OpenAI-compatible servers on loopback are looked for when no key is set."""
    openai_api_key: SecretStr | None = Field(default=None, validation_alias=AliasChoices("OPENAI_API_KEY"))
    """OpenAI's key."""
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias=AliasChoices("ANTHROPIC_API_KEY"))
    """Anthropic's key."""
    anthropic_auth_token: SecretStr | None = Field(default=None, validation_alias=AliasChoices("ANTHROPIC_AUTH_TOKEN"))
    """A bearer token for Anthropic's API, instead of a key; only workflows use it."""
    anthropic_base_url: str = Field(
        default="https://api.anthropic.com",
        validation_alias=AliasChoices("AUTOMAGIK_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL"),
    )
    """Where the model gateway sends requests for Anthropic's API."""
    openai_base_url: str = Field(
        default="https://api.openai.com/v1",
        validation_alias=AliasChoices("AUTOMAGIK_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
    )
    """Where the model gateway sends requests for OpenAI's API."""
    model_prices: _CommaList = []
    """Prices (comma-separated) for models that have none, as `GLOB=INPUT/OUTPUT` in US dollars for a million tokens:
    `our-model*=3/15`."""
    gateway_fields: _CommaList = []
    """Fields (comma-separated) that requests through the model gateway may have under a budget, besides those that are known to cost
    no more than is reserved: `guided_json,cache_salt`."""
    model_call_timeout_seconds: float = Field(default=900, gt=0)
    """How long one call through the model gateway may take."""
    google_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("GOOGLE_API_KEY", "GEMINI_API_KEY")
    )
    """Google's key."""

    run_timeout_seconds: float = Field(default=600, gt=0)
    """How long a run may take where neither its agent nor its request says less."""
    max_concurrent_background_runs: int = Field(default=16, ge=1)
    """How many background runs this process works on at once."""
    max_total_background_runs: int | None = Field(default=None, ge=1)
    """How many background runs all processes together work on at once; unset: as many as they can."""
    max_queued_runs: int = Field(default=10_000, ge=1)
    """How many runs may wait in the queue before further ones are refused with a 429."""
    queue_timeout_seconds: float | None = Field(default=None, gt=0)
    """How long a run may wait in the queue where its request doesn't say; unset: any time."""
    host_name: str | None = None
    """This host's name among those that share a database; unset: the system's."""
    host_lease_seconds: float = Field(default=300, gt=0)
    """How long the work that is bound to a host waits for a worker of that host to come back."""
    outbound_allow: _CommaList = []
    """Hosts, addresses or networks (comma-separated) inside your network that URLs given by callers may reach."""
    max_media_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    """The largest image, audio or document, given or fetched."""
    fetch_timeout_seconds: float = Field(default=20, gt=0)
    """How long fetching one URL may take in all."""

    artifacts_url: str | None = None
    """Where artefacts (media, bundles) are kept: `s3://BUCKET/PREFIX`, `gs://…`, `az://ACCOUNT/CONTAINER/PREFIX` or `file:///FOLDER`;
    unset: `artifacts` in the data folder. Every host needs the same."""
    artifacts_endpoint: str | None = None
    """The address of an S3-compatible server, as `https://minio.example.org:9000`; unset: the provider's own."""
    artifacts_region: str | None = None
    """The region of the S3 bucket."""
    artifacts_access_key: SecretStr | None = None
    """S3's access key id, or the name of the Azure account; unset: as the provider's own tools find it (`AWS_…`, `GOOGLE_…`, `AZURE_…`)."""
    artifacts_secret_key: SecretStr | None = None
    """The secret that goes with `artifacts_access_key`; for `gs://` the JSON text of a service account's key."""
    artifact_retention_days: int = Field(default=7, ge=1)
    """How long an artefact is kept that no session or run uses any more."""
    artifact_cache_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """How many bytes of artefacts that were read last each process keeps in memory."""
    max_artifact_bytes: int = Field(default=1024 * 1024 * 1024, ge=1)
    """The largest artefact."""
    retention_days: int | None = Field(default=None, ge=1)
    """How long finished runs and their events are kept; unset: until `automagik db prune`."""

    executor: Literal["auto", "local", "docker"] = "auto"
    """What workflows run in: `docker`, bubblewrap (`local`), or `auto`: Docker where it works and has the image, else bubblewrap."""
    run_without_sandbox: bool = False
    """Whether workflows may run as plain processes where bubblewrap does not work: for a machine that is a sandbox itself."""
    claude_cli: Path | None = None
    """The Claude CLI's program; unset: the one of the package `claude-agent-sdk`."""
    runtime_dir: Path | None = None
    """Where the sockets of workflow runs stand, a short path; unset: `run` in the data folder."""
    workflows_dir: Path | None = None
    """Where your workflows' folders are found; unset: `workflows` in the data folder."""
    repository_roots: _CommaList = []
    """Folders (comma-separated) whose git repositories a server may clone for workflows."""
    repository_hosts: _CommaList = []
    """Hosts (comma-separated) from which a server may clone repositories for workflows, by https or ssh."""
    github_api_url: str | None = None
    """Where pull requests are opened; unset: as the remote's host has it (`https://api.github.com`, `https://HOST/api/v3`)."""
    registry_hosts: _CommaList = []
    """Hosts (comma-separated) that a sandbox with the egress `registries` may reach; unset: those that this host's own package
    managers are set to."""
    sandbox_image: str = "automagik-claude"
    """The container image of workflows that name none."""
    workflow_images: _CommaList = []
    """Images (comma-separated, `*` for anything) that workflows made through the API may name, of those on the host, besides the
    platform's own."""
    image_seconds: float = Field(default=1800, gt=0)
    """How long fetching a workflow's image may take, and building it."""
    docker_url: str | None = Field(default=None, validation_alias=AliasChoices("AUTOMAGIK_DOCKER_URL", "DOCKER_HOST"))
    """The Docker engine's socket on this host, as `unix:///run/user/1000/docker.sock`; unset: that of Docker's context, else
    `unix:///var/run/docker.sock`."""
    docker_config: Path | None = Field(
        default=None, validation_alias=AliasChoices("AUTOMAGIK_DOCKER_CONFIG", "DOCKER_CONFIG")
    )
    """The folder of Docker's `config.json`, by whose logins images are fetched and whose context names the engine; unset:
    `~/.docker`."""
    sandbox_memory_bytes: int = Field(default=4 * 1024**3, ge=256 * 1024**2)
    """How much memory a workflow's sandbox may take."""
    sandbox_cpus: float = Field(default=2, gt=0)
    """How many processors a workflow's sandbox may use."""
    sandbox_pids: int = Field(default=512, ge=64)
    """How many processes and threads a workflow's sandbox may have."""
    sandbox_tmp_bytes: int = Field(default=1024**3, ge=64 * 1024**2)
    """How large a sandbox's `/tmp` and home may grow."""
    max_workspace_bytes: int = Field(default=10 * 1024**3, ge=1024**2)
    """How large a workflow's workspace may grow before its run is ended."""
    min_free_memory_bytes: int = Field(default=512 * 1024**2, ge=0)
    """How much memory must stay free beside a workflow's sandbox for a host to begin another one."""
    min_free_disk_bytes: int = Field(default=2 * 1024**3, ge=0)
    """How much of the data folder's disk must be free for a host to begin another workflow."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """`json` lines or `console`; `auto`: console on a terminal."""
    otel_endpoint: str | None = Field(
        default=None, validation_alias=AliasChoices("AUTOMAGIK_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    )
    """The OTLP/HTTP endpoint that traces go to; unset: no traces."""
    otel_content: bool = False
    """Whether traces carry prompts and answers, besides names, models, tokens and times."""

    _split_lists = field_validator(
        "cors_origins",
        "fallback_models",
        "outbound_allow",
        "model_prices",
        "gateway_fields",
        "repository_roots",
        "repository_hosts",
        "registry_hosts",
        "workflow_images",
        mode="before",
    )(_split)

    @cached_property
    def agents_folder(self) -> Path:
        """Where agent files are found."""
        return self.agents_dir or self.data_dir / "agents"

    @cached_property
    def runtime_folder(self) -> Path:
        """Where the sockets of workflow runs stand."""
        return self.runtime_dir or self.data_dir / "run"

    @cached_property
    def workflows_folder(self) -> Path:
        """Where the team's own workflows are found."""
        return self.workflows_dir or self.data_dir / "workflows"

    @cached_property
    def outbound_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The entries of `outbound_allow` that are addresses or networks."""
        return tuple(ip_network(entry, strict=False) for entry in self.outbound_allow if _is_network(entry))

    @cached_property
    def outbound_hosts(self) -> frozenset[str]:
        """The entries of `outbound_allow` that are host names, in lower case."""
        return frozenset(entry.lower() for entry in self.outbound_allow if not _is_network(entry))


def _is_network(entry: str) -> bool:
    try:
        ip_network(entry, strict=False)
    except ValueError:
        return False
    return True


class ClientSettings(BaseSettings):
    """What the command line speaks to a server with."""

    model_config = SettingsConfigDict(
        env_prefix="AUTOMAGIK_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    url: str | None = None
    """The server; unset: the profile's, else `http://127.0.0.1:8881`."""
    key: SecretStr | None = None
    """The API key; unset: the profile's."""
    config_dir: Path = Field(default_factory=lambda: user_config_path("automagik"))
    """Where the profile file is kept."""
