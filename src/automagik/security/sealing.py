"""Sealing: a secret encrypted under a data key of its own, which is encrypted under the platform's key (AES-256-GCM both).

A sealed secret is `version (1) | id of the platform's key (8) | nonce (12) | data key (32 + 16) | nonce (12) | secret (n + 16)`.
Its name is the associated data of both encryptions, so a row that is put under another name can't be opened. Another
platform key takes over by encrypting the data key anew; the secret itself is not touched.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from automagik.errors import ConfigurationError

__all__ = ["PlatformKey", "key_id_of", "key_id_of_fingerprint", "parse_keys", "reseal", "seal", "unseal"]

_KEY_BYTES = 32
_VERSION = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
_WRAPPED_BYTES = _NONCE_BYTES + _KEY_BYTES + _TAG_BYTES
_HEAD_BYTES = len(_VERSION) + _ID_BYTES + _WRAPPED_BYTES


@dataclass(frozen=True, slots=True)
class PlatformKey:
    """A key of the platform. `fingerprint` names it and tells nothing of it; `wrapping` is derived from it and encrypts."""

    fingerprint: str
    text: str = field(repr=False)
    wrapping: bytes = field(repr=False)

    @classmethod
    def new(cls) -> "PlatformKey":
        """A fresh random key."""
        return cls._from(os.urandom(_KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> "PlatformKey | None":
        """The key that base64 (either alphabet) spells, or None where the text spells none."""
        try:
            plain = text.strip().rstrip("=").translate(str.maketrans("-_", "+/")).encode("ascii")
            raw = base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            return None
        return cls._from(raw) if len(raw) == _KEY_BYTES else None

    @classmethod
    def _from(cls, raw: bytes) -> "PlatformKey":
        return cls(
            _derived(raw, b"automagik secrets v1: fingerprint")[:16].hex(),
            base64.b64encode(raw).decode(),
            _derived(raw, b"automagik secrets v1: wrapping"),
        )

    @property
    def key_id(self) -> bytes:
        """What sealed secrets name the key by."""
        return key_id_of_fingerprint(self.fingerprint)


def parse_keys(texts: Sequence[str], named: str) -> tuple[PlatformKey, ...]:
    """The keys that the texts spell, in their order; `named` is where they come from.

    Raises: ConfigurationError, which says nothing of what was read.
    """
    keys = [PlatformKey.parse(text) for text in texts if text.strip()]
    found = tuple(key for key in keys if key is not None)
    if not keys or len(found) != len(keys):
        raise ConfigurationError(
            f"{named} is not a key: 32 random bytes in base64.", hint="Make one with `automagik secrets generate`."
        )
    return found


def seal(key: PlatformKey, name: str, value: bytes) -> bytes:
    """The value as it may be stored under this name."""
    data_key = os.urandom(_KEY_BYTES)
    return b"".join((_VERSION, key.key_id, _encrypt(key.wrapping, data_key, name), _encrypt(data_key, value, name)))


def key_id_of_fingerprint(fingerprint: str) -> bytes:
    """What sealed secrets name the key of this fingerprint by."""
    return bytes.fromhex(fingerprint)[:_ID_BYTES]


def key_id_of(token: bytes) -> bytes:
    """Which key a sealed secret is under."""
    return token[len(_VERSION) : len(_VERSION) + _ID_BYTES]


def unseal(key: PlatformKey, name: str, token: bytes) -> bytes:
    """The value. Raises ConfigurationError where the token was changed, or was sealed under another name."""
    return _decrypt(_data_key(key, name, token), token[_HEAD_BYTES:], name)


def reseal(old: PlatformKey, new: PlatformKey, name: str, token: bytes) -> bytes:
    """The same sealed value, under the key `new`. Raises ConfigurationError as `unseal`, whose checks it makes too."""
    data_key = _data_key(old, name, token)
    _decrypt(data_key, token[_HEAD_BYTES:], name)  # what can't be read any more must not pass for good
    return b"".join((_VERSION, new.key_id, _encrypt(new.wrapping, data_key, name), token[_HEAD_BYTES:]))


def _data_key(key: PlatformKey, name: str, token: bytes) -> bytes:
    if token[: len(_VERSION)] != _VERSION or len(token) < _HEAD_BYTES:
        raise _broken(name)
    return _decrypt(key.wrapping, token[len(_VERSION) + _ID_BYTES : _HEAD_BYTES], name)


def _derived(raw: bytes, purpose: bytes) -> bytes:
    return hmac.new(raw, purpose, hashlib.sha256).digest()


def _encrypt(key: bytes, plain: bytes, name: str) -> bytes:
    # Imported here: 30 ms, which a start need not pay where nothing is secret.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, name.encode())


def _decrypt(key: bytes, sealed: bytes, name: str) -> bytes:
    # Imported here: 30 ms, which a start need not pay where nothing is secret.
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    if len(rest) < _TAG_BYTES:
        raise _broken(name)
    try:
        return AESGCM(key).decrypt(nonce, rest, name.encode())
    except InvalidTag:
        raise _broken(name) from None


def _broken(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"The stored secret '{name}' was changed outside the platform and can't be opened.",
        hint="Restore the database from a backup, or set that secret anew.",
    )
