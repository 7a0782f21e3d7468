"""Can the coordinator be reached, and if not, why: the answer gRPC keeps to itself.

gRPC reports a wrong CA, an expired certificate and a server that is down with the same word. Here one TLS handshake is
made by hand, so that a mistake that will never go away by waiting is told from a server that will come back.
"""

from __future__ import annotations

import socket
import ssl

from fedmvp.client.connection import Connection
from fedmvp.client.errors import CoordinatorAwayError
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ClientConfig, is_loopback, split_endpoint
from fedmvp.study.credentials import load_site

PROBE_SECONDS = 5.0
"""A handshake takes two round trips; a server that needs longer is as good as away."""


def reach_server(config: ClientConfig) -> None:
    """Connect once and compare studies, for `fedmvp-client check`.

    Raises:
        UserError: not reachable, not trusted, not enrolled there, or another study.
    """
    require_safe(config)
    credentials = load_site(config)
    if not config.insecure:
        explain_tls(config)
    connection = Connection(config.server.address, credentials, insecure=config.insecure)
    try:
        connection.join()
    except CoordinatorAwayError as error:
        raise unreachable(config.server.address, str(error)) from error
    finally:
        connection.close()


def require_safe(config: ClientConfig) -> None:
    """Refuse --insecure off loopback, whoever set it.

    Raises:
        UserError: as the summary says.
    """
    if config.insecure and not is_loopback(config.server.address):
        raise UserError(
            f"--insecure is refused: {config.server.address} is not a loopback address",
            remedy="remove --insecure",
            exit_code=ExitCode.IDENTITY,
        )


def explain_tls(config: ClientConfig) -> None:
    """Make one mutual TLS handshake.

    Raises:
        UserError: with exit code IDENTITY when one side does not accept the other's certificate, NETWORK when there is
            no server at the address.
    """
    endpoint = config.server.address
    host, port = split_endpoint(endpoint)
    context = ssl.create_default_context(cafile=str(config.identity.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(str(config.identity.certificate), str(config.identity.private_key))
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            secured.recv(1)  # in TLS 1.3 a server's refusal of our certificate comes after the handshake
    except ssl.SSLCertVerificationError as error:
        raise UserError(
            f"the certificate that {endpoint} shows is not accepted: {error.verify_message}",
            remedy="check the address; if it is right, ask the consortium for the present CA and server certificate",
            exit_code=ExitCode.IDENTITY,
        ) from error
    except ssl.SSLError as error:
        raise UserError(
            f"{endpoint} does not accept this site's certificate, or does not speak TLS ({error.reason})",
            remedy="join again with the last package of the consortium, and check the address",
            exit_code=ExitCode.IDENTITY,
        ) from error
    except OSError as error:
        raise unreachable(endpoint, error.strerror or type(error).__name__) from error


def unreachable(endpoint: str, reason: str) -> UserError:
    """The message for a coordinator that is not there."""
    return UserError(
        f"{endpoint} cannot be reached: {reason}",
        remedy="check that the server runs, the address in client.toml, and the firewall between",
        exit_code=ExitCode.NETWORK,
    )
