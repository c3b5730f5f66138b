"""What must never be shown or stored: finds credentials in texts, and takes them out."""

from __future__ import annotations

import os
import re

# Set by the user or by the cloud; what stands in them is never printed.
_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "RAY_AUTH_TOKEN",
)
_LEAST_CHARACTERS = 10
_SECRET_WORDS = {
    "SECRET", "SECRETS", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS",
}  # fmt: skip
_SECRET_KEYS = re.compile(r"(?:ACCESS|API|PRIVATE|ACCOUNT|STORAGE)_KEY(?:_ID)?$")
# No bucket's name has a colon or an @; the @ of other schemes ends a user's name and password.
_USER = re.compile(
    r"\b(?P<bucket>s3a?|gs)://(?!arn:)[^/\s'\"]*[:@][^\s'\"]*"
    r"|\b(?P<host>(?!file:)[a-z][a-z0-9+.-]*)://[^\s'\"/?#]*@",
    re.IGNORECASE,
)
_SIGNED = re.compile(
    r"(?P<name>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)"
    r"|AWSAccessKeyId|GoogleAccessId|Signature|sig|access_token|token)=)[^&\s'\"]*",
    re.IGNORECASE,
)


def is_secret_variable(name: str) -> bool:
    """Say whether an environment variable of that name holds a secret."""
    is_secret = _SECRET_WORDS & set(name.upper().split("_")) or _SECRET_KEYS.search(name.upper())
    return bool(is_secret)


def has_user_info(uri: str) -> bool:
    """Say whether a URI holds a user's name, a password or keys before its host or bucket."""
    return _USER.search(uri) is not None


def has_credentials(text: str) -> bool:
    """Say whether a value that a user wrote holds this process's keys, or a URI holds any.

    Not for the names found in a store, which may hold any sign.
    """
    is_signed = "://" in text and _SIGNED.search(text) is not None
    return is_signed or has_user_info(text) or any(secret in text for secret in _secrets())


def redact(text: str) -> str:
    """Return the text with *** for every credential in it."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _USER.sub(lambda found: f"{found['bucket'] or found['host']}://***", text)
    return _SIGNED.sub(lambda found: f"{found['name']}***", text)


def _secrets() -> list[str]:
    """Return this process's credentials; short ones are words like test, found anywhere."""
    values = (os.environ.get(name, "") for name in _VARIABLES)
    return [value for value in values if len(value) >= _LEAST_CHARACTERS]
