"""A server on loopback that speaks TLS with a certificate of its own, made for "localhost" alone: one that is
good for a century to whoever trusts it, and one that has expired. The key guards nothing."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_server import FaultServer
from serving import serving

KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIP7+CSPct3YQX8gbwiVhyuQlPGOaCn82/aecWjzkYKwXoAoGCCqGSM49
AwEHoUQDQgAEHQoaNdvYQXS5xGFxwqYQZ3H6iMnKLXv6SXdEUcmT4YzT32/TEY+f
lySIb2fJ6HHVBm1ZhRLgl/BzagjilZsYKw==
-----END EC PRIVATE KEY-----
"""
GOOD = """\
-----BEGIN CERTIFICATE-----
MIIBQTCB6aADAgECAgIISDAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMDAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABB0KGjXb2EF0ucRh
ccKmEGdx+ojJyi17+kl3RFHJk+GM099v0xGPn5ckiG9nyehx1QZtWYUS4Jfwc2oI
4pWbGCujKTAnMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAPBgNVHRMBAf8EBTADAQH/
MAoGCCqGSM49BAMCA0cAMEQCICKlN5fC9exTWlmVmBg0K++iQx4Xre7vDeIj8xSp
KELeAiBVELG762PPXCcJ332w2AbWD+Ee+SKzaQGJghpjafHY3w==
-----END CERTIFICATE-----
"""
EXPIRED = """\
-----BEGIN CERTIFICATE-----
MIIBQDCB56ADAgECAgIH0TAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwHhcNMDAwMTAxMDAwMDAwWhcNMDEwMTAxMDAwMDAwWjAUMRIwEAYDVQQDDAls
b2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQdCho129hBdLnEYXHC
phBncfqIycote/pJd0RRyZPhjNPfb9MRj5+XJIhvZ8nocdUGbVmFEuCX8HNqCOKV
mxgroykwJzAUBgNVHREEDTALgglsb2NhbGhvc3QwDwYDVR0TAQH/BAUwAwEB/zAK
BggqhkjOPQQDAgNIADBFAiArC3NOhIncbwjzDKrRJAoqkXnQsLVFtPV80ll4gBMt
PAIhAP4TBK4QtcmnKlEBIkyTj+DkV5SwTqtZzhHkGE86W+Te
-----END CERTIFICATE-----
"""


class TLSServer(FaultServer):
    """As it is, behind TLS; a client that turns away in the handshake is part of the game."""

    def __init__(self, certificate: str, folder: Path) -> None:
        super().__init__()
        file = folder / "server.pem"
        file.write_text(KEY + certificate, encoding="utf-8")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def url_at(self, host: str) -> str:
        return f"https://{host}:{self.server_address[1]}/v1"


@contextmanager
def running(certificate: str) -> Iterator[TLSServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = TLSServer(certificate, Path(folder))
    with serving(server):
        yield server
