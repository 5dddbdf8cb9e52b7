"""An API key's text: how it is made, told from a mistyped one, and stored as a hash."""

import hashlib
import hmac
import secrets
import string
import zlib
from collections.abc import Iterable
from typing import Literal, get_args

Scope = Literal["read", "write", "generate", "admin"]

KEY_PREFIX = "lk_"
SCOPES: tuple[Scope, ...] = get_args(Scope)
# What a key may do unless it is made otherwise: everything but looking at who did what.
USUAL: tuple[Scope, ...] = ("read", "write", "generate")
SHOWN = len(KEY_PREFIX) + 5  # of a key, in lists

_DIGITS = string.digits + string.ascii_letters
_CHECK = 6


def new_key() -> str:
    """The prefix, 256 random bits, and a checksum by which a cut or mistyped key is known."""
    secret = secrets.token_urlsafe(32)
    return f"{KEY_PREFIX}{secret}{_checksum(secret)}"


def is_whole(key: str) -> bool:
    """Whether a key's checksum fits. Keys of before there was one do not have it and still work:
    only who holds the text asks this, the service looks every key up."""
    secret, check = key.removeprefix(KEY_PREFIX)[:-_CHECK], key[-_CHECK:]
    return key.startswith(KEY_PREFIX) and check == _checksum(secret)


def hash_key(key: str, pepper: str) -> str:
    """HMAC-SHA-256 of a key under the service's pepper, as hex."""
    return hmac.new(pepper.encode(), key.encode(errors="replace"), hashlib.sha256).hexdigest()


def stored_scopes(scopes: Iterable[str]) -> str:
    """Scopes as the table has them, in one order. Raises ValueError for none and unknown ones."""
    given = set(scopes)
    if not given or given - set(SCOPES):
        raise ValueError(f"a key's scopes are some of {', '.join(SCOPES)}")
    return " ".join(scope for scope in SCOPES if scope in given)


def _checksum(secret: str) -> str:
    """CRC-32 in base 62, as GitHub's tokens have it."""
    number, text = zlib.crc32(secret.encode(errors="replace")), ""
    for _ in range(_CHECK):
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text
