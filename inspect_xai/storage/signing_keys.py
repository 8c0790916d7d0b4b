"""Keys that sign the ledger: Ed25519, kept in a file outside of the database.

Who owns the database can write a whole new chain of hashes, and cannot sign it. A public key is spelled as the 64
hexadecimal digits of its 32 bytes, a signature as the 128 of its 64.
"""

import os
import stat
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inspect_xai.errors import SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

OPTION: Final = "inspect_xai_signer"
"""The execution option of an engine under which its connections find the `Signer`."""

_FORBIDDEN: Final = stat.S_IWGRP | stat.S_IRWXO  # a group may read: that is how secrets reach a container
_EXPECTED: Final = "an Ed25519 key in PEM, as `inspect-xai ledger key create` makes it"


class Signer:
    """Signs with the private key in a file, which is read when the first signature is wanted.

    Commands that only read the record need no right to read the key.

    Args:
        file: The private key, in PEM.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def public_key(self) -> str:
        """The public key that belongs to it.

        Raises:
            SettingsError: The file is not there, holds no key, or others may read it.
        """
        return _spelled(self._key.public_key())

    def sign(self, words: str) -> str:
        """Sign a text.

        Raises:
            SettingsError: As `public_key`.
        """
        return self._key.sign(words.encode()).hex()

    @cached_property
    def _key(self) -> "Ed25519PrivateKey":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = _read(self.file)
        mode = stat.S_IMODE(self.file.stat().st_mode)
        if mode & _FORBIDDEN:
            raise SettingsError(
                f"others may read or replace the ledger's key {self.file} (mode {mode:04o})",
                expected="mode 0600",
                remedy=f"chmod 600 {self.file}; if somebody else may have read it, change to a new key: "
                "inspect-xai ledger key rotate",
            )
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{self.file} holds no private key: {error}", expected=_EXPECTED) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{self.file} holds a key of another kind", expected=_EXPECTED)
        return key


def create_key(file: Path) -> Signer:
    """Make a new key: the private one in `file` (mode 0600), the public one beside it in `file`.pub.

    Raises:
        SettingsError: One of the files is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = pem_of(_spelled(key.public_key())).encode()
    beside = public_file(file)
    if beside.exists():
        raise SettingsError(f"{beside} is there already", remedy="name another file: a key is never written over")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, private, 0o600)
    _write(beside, public, 0o644)
    return Signer(file)


def public_file(file: Path) -> Path:
    """Return the file to which `create_key` writes the public key."""
    return file.with_name(f"{file.name}.pub")


def read_public_key(file: Path) -> str:
    """Read the public key in a PEM file.

    Raises:
        SettingsError: The file is not there or holds none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(file))
    except ValueError as error:
        expected = "an Ed25519 public key in PEM: the .pub file beside the private one"
        raise SettingsError(f"{file} holds no public key", expected=expected) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{file} holds a public key of another kind", expected="Ed25519")
    return _spelled(key)


def pem_of(public_key: str) -> str:
    """Return a public key as PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def fits(public_key: str, words: str, signature: str) -> bool:
    """Return whether a signature of a text was made with this key; False too where one of them is none."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), words.encode())
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _spelled(key: object) -> str:
    return key.public_bytes_raw().hex()  # type: ignore[attr-defined, no-any-return]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        remedy = "correct the setting ledger.key, or make one: inspect-xai ledger key create FILE"
        raise SettingsError(f"the key {file} cannot be read: {error.strerror}", remedy=remedy) from error


def _write(file: Path, data: bytes, mode: int) -> None:
    """Write a new file with these rights from its first moment on."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        remedy = "name another file: a key is never written over"
        raise SettingsError(f"{file} is there already", remedy=remedy) from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
