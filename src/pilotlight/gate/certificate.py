"""The pool's self-signed certificate, and TLS with it: the peer's certificate is compared with a fingerprint.

There is no certificate authority, and no date is looked at: who has the pool file knows the one certificate that is
right, and the clocks of two machines need not agree.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from datetime import UTC, datetime
from pathlib import Path

from pilotlight.core.errors import ConfigError

_BEGIN, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


def make_certificate() -> bytes:
    """A new private key (P-256) and its certificate, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pilotlight pool")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate, in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def fingerprint_in(pem: bytes) -> str:
    """The fingerprint of the certificate in a file that `make_certificate` made. Raises `ConfigError`."""
    text = pem.decode(errors="replace")
    try:
        return fingerprint(ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :]))
    except ValueError as error:
        raise ConfigError(f"the pool's certificate can't be read: {error}") from error


def manager_context(path: Path) -> ssl.SSLContext:
    """TLS for who listens. path: of key and certificate. Raises `ConfigError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # a reconnect is rare, and resumption would pass the fingerprint by
    try:
        context.load_cert_chain(path)
    except OSError as error:
        raise ConfigError(f"the pool's certificate {path} can't be used: {error}") from error
    return context


def dialler_context() -> ssl.SSLContext:
    """TLS for who dials: the caller compares the certificate (`is_pinned`) before it sends a byte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_pinned(der: bytes | None, pinned: str) -> bool:
    """Whether the peer's certificate is the one of that fingerprint."""
    return der is not None and hmac.compare_digest(fingerprint(der), pinned)
