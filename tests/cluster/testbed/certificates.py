"""One certificate authority for a testbed, and what it signs. All of it lives as long as the testbed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import yaml
from cluster.testbed.place import API_ADDRESS, API_SERVICE, API_URL, AUTHORITY, CERTIFICATES, DOMAIN
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_A_DAY = timedelta(days=1)
_A_YEAR = timedelta(days=365)
_ENCODING = serialization.Encoding.PEM


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs for servers and clients, and writes the kubeconfigs that use it, into one folder."""

    def __init__(self) -> None:
        CERTIFICATES.mkdir(parents=True, mode=0o700)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject("crawlfleet-testbed")
        builder = _builder(self._name, self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        AUTHORITY.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(_ENCODING))

    def server(self, name: str, *hosts: str) -> Pair:
        """For a server that is reached by these addresses and names."""
        return self._sign(name, _subject(name), ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def client(self, user: str, group: str = "") -> Pair:
        """For a client that the API server is to know as this user."""
        file = user.replace(":", "-")
        return self._sign(file, _subject(user, group), ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def api_server(self) -> Pair:
        service = f"kubernetes.default.svc.{DOMAIN}"
        parts = service.split(".")
        names = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        return self.server("kube-apiserver", API_ADDRESS, API_SERVICE, "127.0.0.1", "localhost", *names)

    def kubeconfig(self, user: str, group: str = "", *, to: Path | None = None) -> Path:
        """A kubeconfig for this user, complete in itself."""
        pair = self.client(user, group)
        path = to or pair.key.with_suffix(".kubeconfig")
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(_kubeconfig(pair)))
        return path

    def signing_key(self, name: str) -> Path:
        """A bare private key, for the tokens of service accounts."""
        return self._write_key(name, ec.generate_private_key(ec.SECP256R1()))

    def _sign(
        self, file: str, subject: x509.Name, usage: x509.ObjectIdentifier, hosts: tuple[str, ...]
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, self._name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if hosts:
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = CERTIFICATES / f"{file}.crt"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(_ENCODING))
        return Pair(certificate, self._write_key(file, key))

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = CERTIFICATES / f"{name}.key"
        pem = key.private_bytes(
            _ENCODING, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        path.write_bytes(pem)
        path.chmod(0o600)
        return path


def _subject(name: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), now - _A_DAY, now + _A_YEAR
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _kubeconfig(pair: Pair) -> dict[str, object]:
    def text(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    name = "testbed"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": name, "cluster": {"server": API_URL, "certificate-authority-data": text(AUTHORITY)}}
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": text(pair.certificate),
                    "client-key-data": text(pair.key),
                },
            }
        ],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
