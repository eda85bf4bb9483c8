"""Certificates, tokens and kubeconfig files of the local cluster, made anew for each start."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from e2e.cluster import network
from e2e.cluster.commands import run
from e2e.cluster.model import DNS_DOMAIN, NODE
from e2e.cluster.record import write_whole

API_SERVER = f"https://{network.HOST}:6443"
IDENTITIES = {
    "admin": ("e2e-admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "dns": ("e2e-dns", "system:masters"),
    "kwok": ("e2e-kwok", "system:masters"),
    "provisioner": ("e2e-provisioner", "system:masters"),
}
"""Who calls the API server: a user and a group for each component."""
OPENSSL = f"""\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:{network.HOST},IP:{network.KUBERNETES_SERVICE},DNS:kubernetes,\
DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.{DNS_DOMAIN}
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def create(folder: Path, openssl: str) -> None:
    """Write the keys, certificates, the token file and a kubeconfig for each component."""
    folder.mkdir(mode=0o700)
    (folder / "openssl.cnf").write_text(OPENSSL)
    _certificate(openssl, folder, "ca", "authority", "/CN=e2e-authority")
    _certificate(openssl, folder, "server", "server", "/CN=kube-apiserver")
    # The API server shows this one to the kubelet, for logs and exec.
    _certificate(openssl, folder, "client", "client", "/O=system:masters/CN=kube-apiserver")
    run(openssl, "genpkey", *_KEY, "-out", str(folder / "accounts.key"))
    pair = ("-in", str(folder / "accounts.key"), "-out", str(folder / "accounts.pub"))
    run(openssl, "pkey", "-pubout", *pair)
    authority = (folder / "ca.crt").read_bytes()
    lines = []
    for name, (user, group) in IDENTITIES.items():
        token = secrets.token_hex(24)
        lines.append(f'{token},{user},{user},"{group}"' if group else f"{token},{user},{user}")
        write_whole(folder / f"{name}.kubeconfig", kubeconfig(authority, token))
    write_whole(folder / "tokens.csv", "\n".join(lines) + "\n")


def kubeconfig(authority: bytes, token: str) -> str:
    """A kubeconfig for one identity; JSON, which every reader of YAML takes."""
    cluster = {
        "server": API_SERVER,
        "certificate-authority-data": base64.b64encode(authority).decode(),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": cluster}],
        "users": [{"name": "e2e", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        "current-context": "e2e",
    }
    return json.dumps(document, indent=1) + "\n"


_KEY = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def _certificate(openssl: str, folder: Path, name: str, section: str, subject: str) -> None:
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    run(openssl, "genpkey", *_KEY, "-out", str(key))
    command = ["req", "-x509", "-new", "-days", "3650", "-subj", subject, "-key", str(key)]
    command += ["-config", str(folder / "openssl.cnf"), "-extensions", section]
    if name != "ca":
        command += ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")]
    run(openssl, *command, "-out", str(certificate))
