"""Media of a request: base64 and URLs become content that a model can take, or an error that names the field."""

import base64
import binascii
from collections.abc import Sequence
from typing import get_args

from pydantic_ai import BinaryContent
from pydantic_ai.messages import AudioMediaType, DocumentMediaType, ImageMediaType

from automagik.errors import InvalidInput, TooLarge, nearest
from automagik.outbound import Outbound
from automagik.settings import Settings

__all__ = ["MediaReader"]

Field = Sequence[str | int]

_KNOWN: tuple[str, ...] = (
    *get_args(ImageMediaType),
    *get_args(AudioMediaType),
    *get_args(DocumentMediaType),
    "application/json",
    "application/xml",
    "application/yaml",
    "application/toml",
)
_TEXTUAL = frozenset({"application/json", "application/xml", "application/yaml", "application/toml"})


class MediaReader:
    """Reads media for a run, within the limits of the settings; URLs through the platform's one way out."""

    def __init__(self, settings: Settings, outbound: Outbound) -> None:
        self._max_bytes = settings.max_media_bytes
        self._max_sum = max(settings.max_body_bytes, settings.max_media_bytes)
        self._outbound = outbound

    def decode(self, data: str, media_type: str, *, field: Field, type_field: Field) -> BinaryContent:
        """Base64 as content.

        Raises: InvalidInput for what is no base64 or an unknown media type; TooLarge.
        """
        known = _known_type(media_type, type_field)
        if len(data) > (self._max_bytes + 2) // 3 * 4:
            raise self._too_large(field)
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as wrong:
            raise InvalidInput(
                f"{_path(field)} is no base64: {wrong}.",
                field=field,
                code="invalid_base64",
                hint="Encode the bytes in standard base64 (RFC 4648, with padding), without line breaks.",
            ) from None
        return self._content(content, known, field)

    async def fetch(self, url: str, media_type: str | None, *, field: Field, type_field: Field) -> BinaryContent:
        """What a URL (http, https, data) leads to as content of `media_type`, or of the type that it says itself.

        Raises: InvalidInput for what can't be fetched or is of another type; TooLarge.
        """
        if url[:5].lower() == "data:":
            head, separator, data = url[5:].partition(";base64,")
            if not separator:
                raise InvalidInput(
                    f"{_path(field)} is no data URL in base64.", field=field, hint="Write data:TYPE;base64,DATA."
                )
            return self.decode(data, media_type or head, field=field, type_field=type_field)
        known = None if media_type is None else _known_type(media_type, type_field)
        fetched = await self._outbound.fetch(url, max_bytes=self._max_bytes, field=field)
        if known is None:
            known = _known_type(fetched.media_type, field)
        elif fetched.media_type == "text/html" and known != "text/html":
            raise InvalidInput(
                f"{_path(field)} gives a web page, not {known}.", field=field, hint="Give the URL of the file itself."
            )
        return self._content(fetched.content, known, field)

    def check_sum(self, size: int, *, field: Field) -> None:
        """Refuse media that are too much together. Raises: TooLarge."""
        if size > self._max_sum:
            raise TooLarge(
                f"{_path(field)}: the media are larger than {self._max_sum} bytes together.",
                hint="Send fewer, or raise AUTOMAGIK_MAX_BODY_BYTES.",
            )

    def _content(self, content: bytes, media_type: str, field: Field) -> BinaryContent:
        if len(content) > self._max_bytes:
            raise self._too_large(field)
        if not content:
            raise InvalidInput(f"{_path(field)} is empty.", field=field)
        if media_type.startswith("text/") or media_type in _TEXTUAL:
            try:
                content.decode()
            except UnicodeDecodeError:
                raise InvalidInput(
                    f"{_path(field)} is no text in UTF-8, as {media_type} must be.", field=field
                ) from None
        return BinaryContent(content, media_type=media_type)

    def _too_large(self, field: Field) -> TooLarge:
        return TooLarge(
            f"{_path(field)} is larger than {self._max_bytes} bytes.",
            hint="Send a smaller file, or raise AUTOMAGIK_MAX_MEDIA_BYTES.",
        )


def _known_type(media_type: str, field: Field) -> str:
    kind = media_type.split(";", 1)[0].strip().lower()
    if kind in _KNOWN:
        return kind
    close = nearest(kind, _KNOWN)
    raise InvalidInput(
        f"{_path(field)}: the media type '{kind[:100]}' is not known.",
        field=field,
        code="unknown_media_type",
        hint=f"Did you mean '{close}'?" if close else f"Known are: {', '.join(_KNOWN)}.",
    )


def _path(field: Field) -> str:
    return ".".join(map(str, field))
