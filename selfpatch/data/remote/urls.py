"""URLs of images: which are read, and what must not stand in them."""

import re
from urllib.parse import urlsplit

from selfpatch.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Protocols of fsspec, and what each needs besides the extra `remote`.
PROTOCOLS = {
    "s3": "", "https": "", "http": "", "memory": "", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "hf": "huggingface-hub",
}  # fmt: skip


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def redacted(text: str) -> str:
    """Without what may be a secret: user and password, and all behind a question mark."""
    text = re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*@", r"\1***@", text)
    return re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1?***", text)


def require_allowed(url: str) -> str:
    """The URL, without a slash at its end.

    Raises:
        UserError: it has a user, a password or a signature, which would end in logs; or a protocol that is not read.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{redacted(url)[:200]} is no URL ({error})") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(
            f"{redacted(url)[:200]} has a user, a password or a signature in it, which would stand in logs and in "
            "config.yaml; give it without, and credentials in the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...) or "
            "in the files that s3fs, gcsfs and others read"
        )
    if parts.scheme.lower() not in PROTOCOLS:
        raise UserError(
            f"{url[:200]} is of a protocol that is not read; there are: {', '.join(PROTOCOLS)}, and local paths"
        )
    return url.rstrip("/")
