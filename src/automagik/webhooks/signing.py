"""Signatures of webhooks, after the Standard Webhooks specification 1.0.0 (https://www.standardwebhooks.com)."""

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable
from datetime import datetime

from pydantic import SecretStr

__all__ = ["new_signing_secret", "signed_headers"]

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_signing_secret() -> SecretStr:
    """A fresh signing secret: `whsec_` and 256 random bits in base64."""
    return SecretStr(f"{_PREFIX}{base64.b64encode(os.urandom(_SECRET_BYTES)).decode()}")


def signed_headers(delivery_id: str, at: datetime, body: bytes, secrets: Iterable[SecretStr]) -> dict[str, str]:
    """The headers of one attempt: id, time in Unix seconds, and a signature by each secret; the receiver accepts any of them."""
    timestamp = str(int(at.timestamp()))
    content = b".".join((delivery_id.encode(), timestamp.encode(), body))
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, content) for secret in secrets),
    }


def _signature(secret: SecretStr, content: bytes) -> str:
    key = base64.b64decode(secret.get_secret_value().removeprefix(_PREFIX))
    return f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()}"
