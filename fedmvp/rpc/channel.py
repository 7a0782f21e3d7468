"""gRPC channels and servers as this system opens them: mutual TLS, small messages, connections that are kept alive.

`--insecure` is the one way round TLS; it is refused off loopback, and both ends have to spell it out.
"""

from __future__ import annotations

from typing import Any

import grpc

from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc import limits
from fedmvp.study.credentials import TlsFiles

KEEPALIVE_SECONDS = 20
"""Hours of local training pass without a message; a ping keeps firewalls from forgetting the connection."""

KEEPALIVE_TIMEOUT_SECONDS = 20
MAX_CONCURRENT_STREAMS = 64
"""Calls at once on one connection; a site needs three."""

INSECURE_SITE_METADATA = "fedmvp-site"
"""Metadata key of the site's id when there is no certificate to take it from (--insecure, loopback only)."""

Options = list[tuple[str, Any]]
Metadata = tuple[tuple[str, str | bytes], ...]


def _common_options() -> Options:
    return [
        ("grpc.max_send_message_length", limits.MESSAGE_BYTES),
        ("grpc.max_receive_message_length", limits.MESSAGE_BYTES),
        ("grpc.max_metadata_size", limits.METADATA_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options() -> Options:
    """Options of the coordinator's server."""
    return [
        *_common_options(),
        ("grpc.so_reuseport", 0),  # without this a second server on the same port starts and takes half of the calls
        ("grpc.max_concurrent_streams", MAX_CONCURRENT_STREAMS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
    ]


def client_options() -> Options:
    """Options of a site's channel. Retrying is the runner's business, which knows what may be sent twice."""
    return [
        *_common_options(),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.enable_http_proxy", 0),
    ]


def bind(server: grpc.aio.Server, endpoint: str, tls: TlsFiles | None) -> int:
    """Open the listening port, with mutual TLS unless `tls` is None; return the port number.

    Raises:
        UserError: the port is in use or may not be bound, or the certificate and key do not go together.
    """
    try:
        if tls is None:
            port = server.add_insecure_port(endpoint)
        else:
            credentials = grpc.ssl_server_credentials(
                [(tls.private_key, tls.certificate)], tls.ca, require_client_auth=True
            )
            port = server.add_secure_port(endpoint, credentials)
    except (RuntimeError, ValueError) as error:
        raise _cannot_bind(endpoint) from error
    if port == 0:
        raise _cannot_bind(endpoint)
    return port


def _cannot_bind(endpoint: str) -> UserError:
    return UserError(
        f"cannot listen on {endpoint}: the port is in use, or this address may not be bound here",
        remedy="stop the other program, or choose another address with [server] listen in server.toml",
        exit_code=ExitCode.NETWORK,
    )


def open_channel(endpoint: str, tls: TlsFiles | None) -> grpc.Channel:
    """Return a synchronous channel to the coordinator; mutual TLS unless `tls` is None."""
    if tls is None:
        return grpc.insecure_channel(endpoint, options=client_options())
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.private_key, tls.certificate)
    return grpc.secure_channel(endpoint, credentials, options=client_options())


def insecure_metadata(site_id: int | None) -> Metadata:
    """Call metadata that names the site when there is no TLS; empty otherwise."""
    return () if site_id is None else ((INSECURE_SITE_METADATA, str(site_id)),)
