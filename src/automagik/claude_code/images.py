"""The images that runs are carried out on: the platform's own, and one made of each that a workflow names."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from automagik.claude_code.containers import ContainerManager
from automagik.claude_code.image import (
    BuildContext,
    base_context,
    debootstrap_root,
    derived_context,
    own_context,
)
from automagik.claude_code.image import host_root as write_host_root
from automagik.claude_code.image_facts import ImageFacts, check_image
from automagik.claude_code.image_names import bases_of, login_for, may_use, refused, registry_of
from automagik.claude_code.image_pruning import MADE_FOR_RUNS, last_used, prunable
from automagik.claude_code.progress import Tell, step_of
from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["Images", "build_image", "prune_images"]

_OWN_LABEL = "automagik.sandbox"
_DERIVED, _BASE = MADE_FOR_RUNS
_TELL_SECONDS = 15.0

_log = structlog.stdlib.get_logger(__name__)


class Images:
    """Finds, fetches, builds and names images. Each is built once: its name is the digest of what it is built from."""

    def __init__(self, settings: Settings, manager: ContainerManager) -> None:
        self._settings = settings
        self._manager = manager
        self._facts: dict[str, ImageFacts] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def ready(
        self,
        *,
        image: str | None = None,
        dockerfile: str | None = None,
        trusted: bool = True,
        tell: Tell | None = None,
    ) -> str:
        """The id of an image that has the Claude CLI: the platform's own, or one upon `image` or the Dockerfile. `tell` hears of what
        has to be fetched or built for it; the log does, too.

        Raises: ConfigurationError where it is missing and can't (or, not being trusted, must not) be fetched or used, is not fit for
        this host, or can't be built.
        """
        if image is None and dockerfile is None:
            found = await self._manager.find_image(self._settings.sandbox_image)
            if found is None:
                raise ConfigurationError(
                    f"There is no image {self._settings.sandbox_image}.", hint="Run: automagik image build"
                )
            return str(found["Id"])
        if image is not None and not trusted and not may_use(self._settings, image):
            detail, hint = refused(image)
            raise ConfigurationError(f"workflow.toml: image: {detail}", hint=hint)
        making = self._making.setdefault(image or dockerfile or "", asyncio.Lock())
        if making.locked() and tell is not None:
            tell(f"Another run has {image or 'the image of the Dockerfile'} made; this one waits for it.")
        async with making:
            base = await self._base(image, dockerfile, trusted=trusted, tell=tell)
            if _OWN_LABEL in (base["Config"].get("Labels") or ()):
                return str(base["Id"])
            return await self._once(
                own_context(self._settings, base=base["Id"]),
                _DERIVED,
                name=image or "the Dockerfile",
                hint="Its image needs git and Perl, or Debian's apt-get and a way to a mirror; the CLI needs glibc, which Alpine lacks.",
                what=f"The image of the sandbox is built upon {image or 'that of the Dockerfile'}",
                tell=tell,
            )

    async def build(self, *, base: str | None, tag: str, tell: Callable[[str], None] | None = None) -> str:
        """Build the platform's image and name it `tag`; its id.

        `base`: None for the Dockerfile's own, `host` for one made of this host's programs, `debootstrap` for a minimal
        Debian, else an image's name. Raises: ConfigurationError.
        """
        if base in {"host", "debootstrap"}:
            base = await self._made_base(base, tell)
        elif base is not None and await self._manager.find_image(base) is None:
            await self._fetch(base, hear=tell)
        context = own_context(self._settings, base=base)
        await self._build(context, tag, tell)
        built = await self._manager.find_image(tag)
        assert built is not None
        return str(built["Id"])

    async def drop_unused(self, *, seconds: float, only_look: bool = False) -> list[str]:
        """The names, or ids, of images of the platform that were dropped, because no run on this engine was begun with them for so long.

        They are what runs can have made again, and what had the name of the platform's image before. `only_look`: that would be.
        """
        listed, in_use = await self._manager.images()
        dropped: list[str] = []
        for name, image in sorted(prunable(listed, in_use).items()):
            shown = await self._manager.find_image(image)
            if shown is None or (datetime.now(UTC) - last_used(shown)).total_seconds() < seconds:
                continue
            if only_look or await self._manager.drop_image(name):
                dropped.append(name)
        return dropped

    async def facts_of(self, image: str) -> ImageFacts:
        """What an image, by its id, says of itself."""
        if image not in self._facts:
            self._facts[image] = ImageFacts.of(await self._manager.find_image(image))
        return self._facts[image]

    # -- inner parts

    async def _base(
        self, image: str | None, dockerfile: str | None, *, trusted: bool, tell: Tell | None
    ) -> dict[str, Any]:
        if image is None:
            assert dockerfile is not None
            for upon in bases_of(dockerfile):  # the engine's builder would not know this host's logins
                if await self._manager.find_image(upon) is None:
                    await self._fetch(upon, tell=tell)
            image = await self._once(
                derived_context(dockerfile),
                _BASE,
                name="the Dockerfile",
                hint="Mend the workflow's Dockerfile.",
                what="The image of the Dockerfile is built",
                tell=tell,
            )
        found = await self._manager.find_image(image)
        if found is None and not trusted:
            raise ConfigurationError(
                f"There is no image {image} on this host, and a workflow made through the API can have none fetched.",
                hint=f"An administrator fetches it: docker pull {image}",
            )
        if found is None:
            await self._fetch(image, tell=tell)
            found = await self._manager.find_image(image)
        if found is None:
            raise ConfigurationError(f"There is no image {image}.", hint="See its name in the workflow.")
        check_image(found, image if dockerfile is None else "of the Dockerfile", machine=await self._manager.machine())
        return found

    async def _fetch(self, image: str, *, hear: Callable[[str], None] | None = None, tell: Tell | None = None) -> None:
        """Have the engine fetch an image with this host's login; `hear`, else the log, is told how it goes on, and `tell` each step."""
        registry, seconds, clock = registry_of(image), self._settings.image_seconds, asyncio.get_running_loop()
        began = told = clock.time()
        layers: dict[str, str] = {}

        def say(event: str, words: str, **more: object) -> None:
            if hear is None:
                _log.info(event, image=image, **more)
            else:
                hear(f"{image} {words} ...")

        def step(layer: str, state: str) -> None:
            nonlocal told
            if state.startswith("Pulling from"):
                return  # that is the image itself
            layers[layer] = state
            done = sum(state in {"Pull complete", "Already exists"} for state in layers.values())
            words = f"is coming: {done} of {len(layers)} layers"
            if tell is not None:
                tell(f"{image} {words}")
            if clock.time() - told >= _TELL_SECONDS:
                told = clock.time()
                say("image_coming", words, layers=len(layers), done=done, seconds=round(told - began))

        say("image_is_fetched", f"is fetched from {registry}", registry=registry, limit_seconds=seconds)
        if tell is not None:
            tell(f"{image} is fetched from {registry}")
        login = await login_for(self._settings, image)
        try:
            async with asyncio.timeout(seconds):
                await self._manager.pull(image, login=login, tell=step)
        except TimeoutError:
            raise ConfigurationError(
                f"The image {image} did not come from {registry} within {seconds:.0f} s.",
                hint=f"Is the registry slow, or does it hang? Try on the host: docker pull {image}. "
                "AUTOMAGIK_IMAGE_SECONDS gives it longer.",
            ) from None
        say("image_fetched", "is here", seconds=round(clock.time() - began, 1))

    async def _once(
        self, context: BuildContext, repository: str, *, name: str, hint: str, what: str, tell: Tell | None
    ) -> str:
        """The id of the image of this context, built unless it is there; `tell` then hears `what` is done, and its steps."""

        def step(line: str) -> None:
            number = step_of(line)
            if number is not None and tell is not None:
                tell(f"{what}: step {number}")

        digest = (await asyncio.to_thread(context.digest))[:32]
        tag = f"{repository}:{digest}"
        found = await self._manager.find_image(tag)
        if found is None:
            _log.info("image_is_built", image=tag, upon=name)
            if tell is not None:
                tell(what)
            try:
                async with asyncio.timeout(self._settings.image_seconds):
                    await self._build(context, tag, step)
            except TimeoutError:
                raise ConfigurationError(
                    f"The image of {name} was not built within {self._settings.image_seconds:.0f} s.",
                    hint="AUTOMAGIK_IMAGE_SECONDS gives it longer.",
                ) from None
            except ConfigurationError as error:
                raise ConfigurationError(f"{name}: {error.detail}", hint=hint) from error
            found = await self._manager.find_image(tag)
        else:
            # The engine remembers the time: what is not used for long is dropped, whoever's on this engine it is.
            await self._manager.tag_image(str(found["Id"]), repository, digest)
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
    async with _images(settings) as images:
        return await images.build(base=base, tag=tag, tell=tell)


async def prune_images(settings: Settings, *, unused_seconds: float, only_look: bool = False) -> list[str]:
    """Drop images of the platform from this machine's engine that are not used for so long. See `Images.drop_unused`.

    Raises: ConfigurationError where there is no engine.
    """
    async with _images(settings) as images:
        return await images.drop_unused(seconds=unused_seconds, only_look=only_look)


@asynccontextmanager
async def _images(settings: Settings) -> AsyncGenerator[Images]:
    manager = ContainerManager(settings, instance="")
    try:
        found = await manager.check()
        if not found.works:
            raise ConfigurationError(f"Docker can't be used: {found.reason}", hint=found.remedy)
        yield Images(settings, manager)
    finally:
        await manager.close()
