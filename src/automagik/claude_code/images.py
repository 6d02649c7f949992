"""The images that runs are carried out on: the platform's own, and one made of each that a workflow names."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automagik.claude_code.containers import ContainerManager
from automagik.claude_code.image import (
    BuildContext,
    base_context,
    debootstrap_root,
    derived_context,
    own_context,
)
from automagik.claude_code.image import host_root as write_host_root
from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["Images", "build_image"]

_OWN_LABEL = "automagik.sandbox"
_DERIVED = "automagik-derived"
_BASE = "automagik-base"


class Images:
    """Finds, builds and names images. Each is built once: its name is the digest of what it is built from."""

    def __init__(self, settings: Settings, manager: ContainerManager) -> None:
        self._settings = settings
        self._manager = manager
        self._paths: dict[str, str] = {}
        self._building = asyncio.Lock()

    async def ready(self, *, image: str | None = None, dockerfile: str | None = None, pull: bool = True) -> str:
        """The id of an image that has the Claude CLI: the platform's own, or one upon `image` or the Dockerfile.

        Raises: ConfigurationError where it is missing (and may not be pulled), or can't be built.
        """
        if image is None and dockerfile is None:
            found = await self._manager.find_image(self._settings.sandbox_image)
            if found is None:
                raise ConfigurationError(
                    f"There is no image {self._settings.sandbox_image}.", hint="Run: automagik image build"
                )
            return str(found["Id"])
        async with self._building:
            base = await self._base(image, dockerfile, pull=pull)
            if _OWN_LABEL in (base["Config"].get("Labels") or ()):
                return str(base["Id"])
            return await self._once(
                own_context(self._settings, base=base["Id"]), _DERIVED, name=f"{image or 'the Dockerfile'}"
            )

    async def build(self, *, base: str | None, tag: str, tell: Callable[[str], None] | None = None) -> str:
        """Build the platform's image and name it `tag`; its id.

        `base`: None for the Dockerfile's own, `host` for one made of this host's programs, `debootstrap` for a minimal
        Debian, else an image's name. Raises: ConfigurationError.
        """
        if base in {"host", "debootstrap"}:
            base = await self._made_base(base, tell)
        context = own_context(self._settings, base=base)
        await self._build(context, tag, tell)
        built = await self._manager.find_image(tag)
        assert built is not None
        return str(built["Id"])

    async def path_of(self, image: str) -> str:
        """An image's own `PATH`."""
        if image not in self._paths:
            found = await self._manager.find_image(image)
            env: list[str] = [] if found is None else found["Config"].get("Env") or []
            self._paths[image] = next((line.partition("=")[2] for line in env if line.startswith("PATH=")), "")
        return self._paths[image]

    # -- inner parts

    async def _base(self, image: str | None, dockerfile: str | None, *, pull: bool) -> dict[str, Any]:
        if image is None:
            assert dockerfile is not None
            image = await self._once(derived_context(dockerfile), _BASE, name="the Dockerfile")
        found = await self._manager.find_image(image)
        if found is None and not pull:
            raise ConfigurationError(
                f"There is no image {image} on this host, and a workflow made through the API can have none fetched.",
                hint=f"An administrator fetches it: docker pull {image}",
            )
        if found is None:
            await self._manager.pull(image)
            found = await self._manager.find_image(image)
        if found is None:
            raise ConfigurationError(f"There is no image {image}.", hint="See its name in the workflow.")
        return found

    async def _once(self, context: BuildContext, repository: str, *, name: str) -> str:
        """The id of the image of this context, built unless it is there."""
        tag = f"{repository}:{(await asyncio.to_thread(context.digest))[:32]}"
        found = await self._manager.find_image(tag)
        if found is None:
            await self._build(context, tag, None)
            found = await self._manager.find_image(tag)
        if found is None:
            raise ConfigurationError(f"The image of {name} was built and is not there.")
        return str(found["Id"])

    async def _build(self, context: BuildContext, tag: str, tell: Callable[[str], None] | None) -> None:
        with tempfile.TemporaryFile() as archive:
            await asyncio.to_thread(context.write, archive)
            await self._manager.build(archive, tag=tag, arguments=dict(context.arguments), tell=tell)

    async def _made_base(self, kind: str, tell: Callable[[str], None] | None) -> str:
        with tempfile.TemporaryDirectory(prefix="automagik-image-") as folder:
            root = Path(folder, "root.tar")
            if tell is not None:
                tell(f"Making a base image ({kind}) ...")
            await (write_host_root(root) if kind == "host" else debootstrap_root(root))
            tag = f"{_BASE}:{kind}"
            await self._build(base_context(root), tag, tell)
        return tag


async def build_image(
    settings: Settings, *, base: str | None, tag: str, tell: Callable[[str], None] | None = None
) -> str:
    """Build the platform's image with this machine's engine; its id. See `Images.build`.

    Raises: ConfigurationError where there is no engine or CLI, or a step fails.
    """
    manager = ContainerManager(settings, instance="")
    try:
        found = await manager.check()
        if not found.works:
            raise ConfigurationError(f"Docker can't be used: {found.reason}", hint=found.remedy)
        return await Images(settings, manager).build(base=base, tag=tag, tell=tell)
    finally:
        await manager.close()
