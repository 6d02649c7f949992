"""Which images of the platform in an engine nobody has used for long: those that can be made again where a run needs them."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, cast

__all__ = ["MADE_FOR_RUNS", "PLATFORM_LABELS", "last_used", "prunable"]

MADE_FOR_RUNS = ("automagik-derived", "automagik-base")
"""The repositories whose images are named by the digest of what they are built from."""
PLATFORM_LABELS = ("automagik.sandbox", "automagik.base")
"""What the platform's image and bases bear, also when another one has taken their name."""

_MADE = re.compile(rf"(?:{'|'.join(MADE_FOR_RUNS)}):[0-9a-f]{{32}}")
_NO_NAME = {"<none>:<none>", "<none>@<none>"}


def prunable(listed: Iterable[Mapping[str, Any]], in_use: frozenset[str]) -> dict[str, str]:
    """The names (of one without: the id) by which images can be dropped, each with its image's id; those in use are not among them."""
    found: dict[str, str] = {}
    for image in listed:
        if image["Id"] in in_use:
            continue
        # One that was fetched by its digest has no other name.
        names = {*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())} - _NO_NAME
        found.update({name: image["Id"] for name in names if _MADE.fullmatch(name)})
        if not names and set(PLATFORM_LABELS) & set(image.get("Labels") or ()):
            found[image["Id"]] = image["Id"]
    return found


def last_used(shown: Mapping[str, Any]) -> datetime:
    """When an image was built, or taken for a run last: each time it is given its name again."""
    created = datetime.fromisoformat(str(shown["Created"]))
    metadata = cast("Mapping[str, Any]", shown.get("Metadata") or {})
    named = metadata.get("LastTagTime")
    return max(created, datetime.fromisoformat(str(named))) if named else created
