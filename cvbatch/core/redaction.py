"""Find and redact credentials in text and URIs, which must never be printed or stored."""

from __future__ import annotations

import os
import re

# Set by the user or by the cloud; their values are never printed.
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "RAY_AUTH_TOKEN",
)
_MIN_SECRET_CHARACTERS = 10
_SECRET_WORDS = {
    "SECRET", "SECRETS", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS",
}  # fmt: skip
_SECRET_KEYS = re.compile(r"(?:ACCESS|API|PRIVATE|ACCOUNT|STORAGE)_KEY(?:_ID)?$")
# A bucket name contains neither : nor @. In other schemes @ ends the user name and password.
_USER_INFO = re.compile(
    r"\b(?P<bucket>s3a?|gs)://(?!arn:)[^/\s'\"]*[:@][^\s'\"]*"
    r"|\b(?P<host>(?!file:)[a-z][a-z0-9+.-]*)://[^\s'\"/?#]*@",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(
    r"(?P<name>[?&](?:X-Amz-(?:Signature|Credential|Security-Token)|X-Goog-(?:Signature|Credential)"
    r"|AWSAccessKeyId|GoogleAccessId|Signature|sig|access_token|token)=)[^&\s'\"]*",
    re.IGNORECASE,
)


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable of that name contains a secret."""
    is_secret = _SECRET_WORDS & set(name.upper().split("_")) or _SECRET_KEYS.search(name.upper())
    return bool(is_secret)


def has_user_info(uri: str) -> bool:
    """Return whether a URI has a user name, password or keys before its host or bucket."""
    return _USER_INFO.search(uri) is not None


def has_credentials(text: str) -> bool:
    """Return whether a user's value contains this process's keys, or is a URI with credentials.

    Do not use it for names of stored objects: they may contain any character.
    """
    is_signed = "://" in text and _SIGNATURE.search(text) is not None
    return is_signed or has_user_info(text) or any(secret in text for secret in _secrets())


def redact(text: str) -> str:
    """Return the text with every credential replaced by ***."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    text = _USER_INFO.sub(lambda match: f"{match['bucket'] or match['host']}://***", text)
    return _SIGNATURE.sub(lambda match: f"{match['name']}***", text)


def _secrets() -> list[str]:
    """Return this process's credentials, without short ones: a word such as "test" is anywhere."""
    values = (os.environ.get(name, "") for name in _SECRET_VARIABLES)
    return [value for value in values if len(value) >= _MIN_SECRET_CHARACTERS]
