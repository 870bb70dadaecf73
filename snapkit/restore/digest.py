"""The file's digests: BLAKE3-256 (the BLAKE3 specification, 2020), keyed when there is a key.

Plain digests find damage; keyed ones also find forgery, because whoever lacks the key cannot make them. The key is 32
bytes. Keyed digests are compared in constant time.
"""

from collections.abc import Iterable

from blake3 import blake3

from snapkit.errors import ConfigError

DIGEST_LEN = 32
KEY_LEN = 32
BLAKE3 = 1
BLAKE3_KEYED = 2
ALGORITHMS = {BLAKE3: "BLAKE3-256", BLAKE3_KEYED: "keyed BLAKE3-256"}

Payload = bytes | bytearray | memoryview


def key_from(content: bytes, *, what: str = "key file") -> bytes:
    """Read a key from the *content* of a key file: 32 bytes, or 64 hexadecimal digits and a line end.

    Raises ConfigError, naming *what*, when it is neither.
    """
    if len(content) == KEY_LEN:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_LEN:
        raise ConfigError(
            f"{what} has {len(content)} bytes, must be {KEY_LEN} bytes or {2 * KEY_LEN} hexadecimal digits"
        )
    return key


class Digester:
    """Make and check digests with one key, or with none."""

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != KEY_LEN:
            raise ConfigError(f"key has {len(key)} bytes, must be {KEY_LEN}")
        self._key = key
        self.algorithm = BLAKE3 if key is None else BLAKE3_KEYED

    @property
    def keyed(self) -> bool:
        return self._key is not None

    @property
    def name(self) -> bytes:
        """The same for all that have the same key, and does not tell it."""
        return b"" if self._key is None else self.of(b"")

    def agrees_with(self, other: "Digester") -> bool:
        """Return whether the digests that *other* made are those that this one would make."""
        return self._key == other._key

    def of(self, payload: Payload) -> bytes:
        """Return the digest of *payload*; releases the interpreter lock while it works on large ones."""
        if self._key is None:
            return blake3(payload).digest()
        return blake3(payload, key=self._key).digest()

    def of_parts(self, parts: Iterable[Payload]) -> bytes:
        """Return the digest of *parts*, one after the other."""
        hasher = blake3() if self._key is None else blake3(key=self._key)
        for part in parts:
            hasher.update(part)
        return hasher.digest()

    def matches(self, payload: Payload, digest: bytes) -> bool:
        """Return whether *digest* is that of *payload*."""
        return self.same(self.of(payload), digest)

    def same(self, one: bytes, other: bytes) -> bool:
        """Return whether both are the same; with a key, how long that takes does not tell where they differ."""
        if self._key is None:
            return one == other
        # Imported here: it pulls OpenSSL in, which a file without a key should not wait for.
        from hmac import compare_digest

        return compare_digest(one, other)
