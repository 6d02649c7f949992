"""Who may do what: API keys and their scopes."""

from automagik.security.keys import KeyRing, new_key
from automagik.security.scopes import KNOWN_SCOPES, NAMED_SCOPES, check_scopes, first_beyond

__all__ = ["KNOWN_SCOPES", "NAMED_SCOPES", "KeyRing", "check_scopes", "first_beyond", "new_key"]
