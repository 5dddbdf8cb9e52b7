"""Signatures of webhooks, as Standard Webhooks has them: https://www.standardwebhooks.com.

A secret is derived from the service's pepper, the endpoint's id and a nonce, so that whoever has
the database alone can sign nothing; a new nonce is a new secret.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
SHOWN = 4  # of a secret's last characters, to tell it from another


def new_nonce() -> str:
    return secrets.token_hex(16)


def secret_of(pepper: str, endpoint_id: str, nonce: str) -> str:
    """`whsec_` and 32 bytes in base64."""
    meant = f"webhook {endpoint_id} {nonce}".encode()
    key = hmac.new(pepper.encode(), meant, hashlib.sha256).digest()
    return PREFIX + base64.b64encode(key).decode()


def hint_of(secret: str) -> str:
    return f"{PREFIX}...{secret[-SHOWN:]}"


def signed_headers(
    event_id: str, timestamp: int, body: bytes, keys: Sequence[str]
) -> dict[str, str]:
    """What a receiver verifies the body with: one signature for each secret that it may have."""
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(_signature(event_id, timestamp, body, key) for key in keys),
    }


def _signature(event_id: str, timestamp: int, body: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
