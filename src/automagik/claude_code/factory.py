"""Which executor carries a workflow out."""

from typing import Literal

from automagik.claude_code.docker import DockerExecutor
from automagik.claude_code.executor import Executor
from automagik.claude_code.local import LocalExecutor
from automagik.errors import ConfigurationError, InvalidInput
from automagik.settings import Settings

__all__ = ["ExecutorFactory", "ExecutorName"]

ExecutorName = Literal["auto", "local", "docker"]


class ExecutorFactory:
    """Gives executors, each made once: the executor of a stored execution by its name, that of a new one by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, Executor] = {}

    async def executor(self, name: ExecutorName | None = None) -> Executor:
        """The executor that is meant; None: the settings' one. `auto` is Docker where that works and has the image, else bubblewrap.

        Raises: ConfigurationError where it does not work here, with what mends it.
        """
        wanted = name or self._settings.executor
        if wanted != "auto":
            return await self._working(self.named(wanted))
        docker = self.named("docker")
        if (await docker.check()).works:
            return docker
        return await self._working(self.named("local"))

    def named(self, name: str) -> Executor:
        """The executor of this name, whether it works or not: for what was begun with it. Raises: InvalidInput for no such name."""
        if name not in self._made:
            match name:
                case "local":
                    self._made[name] = LocalExecutor(self._settings)
                case "docker":
                    self._made[name] = DockerExecutor(self._settings)
                case _:
                    raise InvalidInput(
                        f"There is no executor '{name}'.", field=("executor",), hint="There are: auto, local, docker."
                    )
        return self._made[name]

    async def working(self) -> list[Executor]:
        """The executors that work on this host, of those that the settings allow."""
        wanted = ("docker", "local") if self._settings.executor == "auto" else (self._settings.executor,)
        return [executor for executor in map(self.named, wanted) if (await executor.check()).works]

    async def close(self) -> None:
        """Let go of what executors hold. What runs goes on."""
        for executor in self._made.values():
            await executor.close()
        self._made.clear()

    async def _working(self, executor: Executor) -> Executor:
        found = await executor.check()
        if not found.works:
            raise ConfigurationError(
                f"The executor '{executor.name}' does not work here: {found.reason}", hint=found.remedy
            )
        return executor
