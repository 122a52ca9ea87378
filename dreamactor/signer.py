"""Who signs the manifests of results: the user's certificate, or one made on this machine.

    DREAMACTOR_SIGN_CERT   PEM file, the chain: the signer's certificate first
    DREAMACTOR_SIGN_KEY    PEM file, the signer's private key, without a passphrase

Without them a certificate of this machine signs. It is made once, with a root of its own whose key
is thrown away, and kept with its key in one private file of `home()`. It says that a file is as
this program wrote it, not who the user is: nobody vouches for it, and it names nobody.
"""

from __future__ import annotations

import datetime
import os
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import refusals

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

CERTIFICATE, KEY = "DREAMACTOR_SIGN_CERT", "DREAMACTOR_SIGN_KEY"
HOME = "DREAMACTOR_HOME"
VARIABLES = (CERTIFICATE, KEY)
LOCAL = "DreamActor, local certificate"
"""The organisation that certificates made here name."""
YEARS = 10
"""That they are valid."""


@dataclass(frozen=True)
class Signer:
    """A key with the chain of its certificate."""

    chain: str
    """PEM, the signer's certificate first."""
    key: str = field(repr=False)
    """PEM, PKCS 8."""
    algorithm: str
    """As C2PA names it: es256, ps256, ..."""
    local: bool
    """Whether it is this machine's own."""


def home() -> Path:
    """Where private files lie: DREAMACTOR_HOME, or the platform's folder for data of programs."""
    if stated := os.environ.get(HOME):
        return Path(stated)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "DreamActor"
    if sys.platform == "darwin":
        return Path.home() / "Library/Application Support/DreamActor"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "dreamactor"


def users() -> Signer | None:
    """The signer that the environment names; None where it names none.

    Raises:
        ConfigError: Only one of the two is named, a file cannot be read, or they cannot sign.
    """
    paths = {name: os.environ.get(name) for name in VARIABLES}
    if not any(paths.values()):
        return None
    texts = {}
    for name, path in paths.items():
        if not path:
            raise ConfigError(f"{name} is not set; want both of {' and '.join(VARIABLES)}")
        try:
            texts[name] = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "not a PEM file"
            raise ConfigError(f"{name}={path}: {reason}") from error
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    try:
        chain = load_pem_x509_certificates(texts[CERTIFICATE].encode())
    except ValueError as error:
        raise ConfigError(f"{CERTIFICATE}={paths[CERTIFICATE]}: no PEM certificate") from error
    try:
        key = load_pem_private_key(texts[KEY].encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{KEY}={paths[KEY]}: not a PEM private key, or it has a passphrase; want one without"
        ) from error
    if chain[0].public_key() != key.public_key():
        raise ConfigError(
            f"{KEY}={paths[KEY]}: is not the key of the first certificate in {paths[CERTIFICATE]}"
        )
    _check_use(chain, f"{CERTIFICATE}={paths[CERTIFICATE]}")
    return Signer(texts[CERTIFICATE], _pem(key), algorithm(key, str(paths[KEY])), local=False)


def algorithm(key: PrivateKeyTypes, name: str) -> str:
    """How C2PA calls what a private key does.

    Raises:
        ConfigError: It has no name for that; `name` is in the message.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise ConfigError(f"{name}: want a key of P-256, P-384, P-521, Ed25519 or RSA from 2048 bits")


def _check_use(chain: list[Certificate], name: str) -> None:
    """Refuse what C2PA would refuse after the work is done."""
    now = datetime.datetime.now(datetime.UTC)
    until = chain[0].not_valid_after_utc
    if not chain[0].not_valid_before_utc <= now <= until:
        raise ConfigError(f"{name}: not valid today, but until {until:%Y-%m-%d}")
    if len(chain) == 1 and chain[0].issuer == chain[0].subject:
        raise ConfigError(f"{name}: signed by itself; C2PA wants one that an authority issued")


def local() -> Signer:
    """This machine's own signer; made on first use.

    Raises:
        MediaError: Its file can be neither read nor written, or is damaged.
    """
    path = home() / "local_signer.pem"
    with refusals(path):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep(path, _made())
        text = path.read_text(encoding="ascii", errors="replace")
    key, mark, chain = text.partition("-----BEGIN CERTIFICATE-----")
    if not key.startswith("-----BEGIN PRIVATE KEY-----") or mark + chain == "":
        raise MediaError(f"{path}: damaged; remove it, and another one will be made")
    return Signer(mark + chain, key, "es256", local=True)


def _keep(path: Path, text: str) -> None:
    """Write a private file whole; where another process was faster, its file stays."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def _made() -> str:
    """PEM of a new key, its certificate and the root's."""
    from cryptography.hazmat.primitives.asymmetric import ec

    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = [_certificate(key, "signer", root), _certificate(root, "root", root)]
    return _pem(key) + "".join(map(_pem, chain))


def _certificate(key: Any, role: str, root: Any, organisation: str = LOCAL) -> Certificate:
    """What C2PA wants of a certificate: a use, an issuer, no more."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(role: str) -> x509.Name:
        return x509.Name([
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"DreamActor {role}"),
        ])  # fmt: skip

    public, leads = key.public_key(), role == "root"
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(role))
        .issuer_name(name("root"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(leads, 0 if leads else None), True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not leads, key_cert_sign=leads, crl_sign=leads, **usage
            ),
            True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False)
    )
    if not leads:
        mail = [ExtendedKeyUsageOID.EMAIL_PROTECTION]  # of the uses that C2PA lists, the plainest
        builder = builder.add_extension(x509.ExtendedKeyUsage(mail), False)
    return builder.sign(root, SHA256())


def _pem(item: Any) -> str:
    """A certificate or private key as text."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509 import Certificate

    if isinstance(item, Certificate):
        return item.public_bytes(serialization.Encoding.PEM).decode()
    return str(
        item.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
    )


def known() -> list[Signer]:
    """The signers whose files can be told from others here: the user's and the local one."""
    found = [users()]
    if (home() / "local_signer.pem").is_file():
        found.append(local())
    return [signer for signer in found if signer is not None]


def serial(signer: Signer) -> int:
    """Number of the signer's certificate."""
    from cryptography.x509 import load_pem_x509_certificates

    return load_pem_x509_certificates(signer.chain.encode())[0].serial_number
