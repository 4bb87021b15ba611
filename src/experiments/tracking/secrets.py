"""Passwords and tokens, kept out of everything that is recorded or printed."""

import functools
import json
import logging
import os
import re
from urllib.parse import quote, unquote

_HIDDEN = "***"
_SECRET_NAME = re.compile(
    "PASSWORD|PASSWD|TOKEN|SECRET|API_KEY|APIKEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|CONNECTION_STRING|(^|_)PASS$|_PWD$",
    re.IGNORECASE,
)
_SECRET_IN_QUERY = re.compile(r"([?&;](?:password|passwd|pwd|token|accountkey)=)[^&;\s'\"]+", re.IGNORECASE)
_SHORTEST_SECRET = 8  # characters; shorter values, such as true or 4096, also stand where they are none
_SHORTEST_PASSWORD = 6  # characters of a store's password that is looked for outside of its URI
_STORES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
#: https://token@host, https://token:@host and https://token:x-oauth-basic@host; other schemes have a user there.
_TOKEN_IN_URI = re.compile(r"(https?://)[^\s:/?#@\[\]\"'<>,;()]+(?=(?::(?:x-oauth-basic)?)?@)", re.IGNORECASE)
#: The scheme is not looked at: to search for :// first is fast, and any scheme will do.
_PASSWORD_IN_URI = re.compile(
    r"""
    (?P<before>://[^\s:/?\#@\[\]"<>]*:)
    (?!\d*[/?\#"',;)])  # a port
    (?P<password>
        (?:[^\s/?\#@"<>]+|@[^\s/?\#@"'<>,;]+)(?:@[^\s/?\#@"'<>,;]*)*  # up to the last @ before the path
        |(?:(?!://)[^\s@"<>])+  # SQLAlchemy takes / ? and # as they are
    )
    (?=@)
    """,
    re.VERBOSE,
)


def without_secrets(text: str) -> str:
    """The text with `***` in place of every secret.

    Secrets are the values of environment variables whose names say so (PASSWORD, TOKEN, API_KEY ...), passwords and
    tokens in URIs, and the passwords of the MLflow stores wherever they occur. Users and hosts are kept.
    """
    values = tuple(os.environ.get(name, "") for name in os.environ if _is_secret(name))
    uris = tuple(os.environ.get(name, "") for name in _STORES)
    for secret in _secrets(values, uris):
        text = text.replace(secret, _HIDDEN)
    if "=" in text:
        text = _SECRET_IN_QUERY.sub(rf"\g<1>{_HIDDEN}", text)
    if "://" in text:
        text = _TOKEN_IN_URI.sub(rf"\g<1>{_HIDDEN}", text)
        text = _PASSWORD_IN_URI.sub(rf"\g<before>{_HIDDEN}", text)
    return text


@functools.cache
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


@functools.lru_cache(maxsize=1)
def _secrets(values: tuple[str, ...], uris: tuple[str, ...]) -> list[str]:
    """The texts to redact, the longest first.

    Args:
        values: of environment variables; those that name a file are no secrets.
        uris: of stores.
    """
    secrets = {value.strip() for value in values if not os.path.exists(value)}
    secrets = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
    for uri in uris:
        if found := _PASSWORD_IN_URI.search(uri):
            password = unquote(found["password"])
            rest = uri[: found.start("password")] + uri[found.end("password") :]
            # In mlflow:mlflow@host/mlflow it is no more secret than the user.
            if len(password) >= _SHORTEST_PASSWORD and password not in rest:
                secrets |= {password, found["password"]}
    # As they stand in URIs, in JSON and in the words of a shell.
    secrets |= {quote(secret, safe="", errors="surrogateescape") for secret in secrets}
    secrets |= {form for secret in secrets for form in (json.dumps(secret)[1:-1], secret.replace("'", "'\"'\"'"))}
    return sorted(secrets, key=len, reverse=True)


class WithoutSecrets(logging.Formatter):
    """A formatter that redacts secrets in log lines and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a log record, and its traceback, without secrets."""
        return without_secrets(super().format(record))
