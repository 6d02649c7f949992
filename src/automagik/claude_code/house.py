"""House: what all runs of workflows of one process share."""

from dataclasses import dataclass

from automagik.artifacts import ArtifactStore
from automagik.budget import Ledger
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.probing import Probing
from automagik.claude_code.publish import Publisher
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.workflow_files import Workflows
from automagik.claude_code.workspaces import Workspaces
from automagik.gateway import Gateway
from automagik.outbound import Outbound
from automagik.sandbox.registries import RegistryFinder
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import Clock

__all__ = ["House"]


@dataclass(frozen=True, slots=True)
class House:
    """The rooms and services that workflows are carried out with."""

    settings: Settings
    clock: Clock
    store: Store
    artifacts: ArtifactStore
    outbound: Outbound
    ledger: Ledger
    gateway: Gateway
    executors: ExecutorFactory
    repositories: Repositories
    workflows: Workflows
    workspaces: Workspaces
    probing: Probing
    publisher: Publisher
    registries: RegistryFinder
    host: str
    """The name of this host, which runs belong to."""
