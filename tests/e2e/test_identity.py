"""Who may speak to whom: the socket, the certificates, the keys on disk, the port."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmvp.client.connection import Connection
from fedmvp.client.errors import CoordinatorAwayError
from fedmvp.errors import ExitCode
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.v1.aggregation_pb2_grpc import AggregationStub
from fedmvp.study.config import load_client_config
from fedmvp.study.credentials import SiteCredentials, load_site
from fedmvp.study.identity import Authority, TlsKey, certificate_pem
from tests.e2e.federation import Federation, Process, policy_text


@pytest.fixture(scope="module")
def running(federation: Callable[..., Federation]) -> tuple[Federation, Process, dict[str, Process]]:
    """A server that waits for a third site, and two sites that wait with it."""
    made: Federation = federation(sites=3, policy=policy_text(join_seconds=600.0))
    server = made.start_server()
    sites = {name: made.start_site(name) for name in ("site-1", "site-2")}
    for site in sites.values():
        site.wait_for("joined")
    return made, server, sites


Running = tuple[Federation, Process, dict[str, Process]]


def client_context(made: Federation, site: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(made.server_folder / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    if site is not None:
        identity = load_client_config(made.study.site_configs[site], environment={}).identity
        context.load_cert_chain(str(identity.certificate), str(identity.private_key))
    return context


def credentials(made: Federation, site: str) -> SiteCredentials:
    return load_site(load_client_config(made.study.site_configs[site], environment={}))


def channel(made: Federation, certificate: bytes, private_key: bytes) -> grpc.Channel:
    ca = (made.server_folder / "ca.pem").read_bytes()
    return grpc.secure_channel(f"127.0.0.1:{made.port}", grpc.ssl_channel_credentials(ca, private_key, certificate))


def test_server_and_sites_are_distinct_processes(running: Running) -> None:
    _, server, sites = running
    pids = [server.pid, *(site.pid for site in sites.values())]

    assert len(set(pids)) == 3
    assert server.lines[0] == f"pid {server.pid}"
    assert [site.lines[0] for site in sites.values()] == [f"pid {site.pid}" for site in sites.values()]


def test_the_socket_speaks_tls_and_shows_the_servers_certificate(running: Running) -> None:
    made, _, _ = running
    with (
        socket.create_connection(("127.0.0.1", made.port), timeout=10) as plain,
        client_context(made, "site-1").wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
        answered = secured.recv(9)

    assert shown is not None
    assert ssl.DER_cert_to_PEM_cert(shown).encode() == (made.server_folder / "server.pem").read_bytes()
    assert answered[3] == 4  # an HTTP/2 SETTINGS frame: the handshake is done and the server talks


def test_plain_text_is_refused(running: Running) -> None:
    made, _, _ = running
    with socket.create_connection(("127.0.0.1", made.port), timeout=10) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        answer = plain.recv(100)

    assert answer == b"" or answer[0] == 0x15  # closed, or a TLS alert; never an HTTP/2 frame


def test_a_client_without_a_certificate_is_refused(running: Running) -> None:
    made, _, _ = running

    def first_byte() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", made.port), timeout=10) as plain,
            client_context(made, None).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            return secured.recv(1) or _closed()

    with pytest.raises((ssl.SSLError, ConnectionError)):
        first_byte()


def _closed() -> bytes:
    raise ConnectionError


def test_a_certificate_of_the_right_authority_for_an_unlisted_key_is_refused(running: Running) -> None:
    made, _, _ = running
    folder = made.study.folder / "consortium"
    authority = Authority.load(folder / "ca.key", folder / "ca.pem")
    key = TlsKey.generate()
    certificate = certificate_pem(authority.site_certificate(key.private.public_key(), "site-1"))
    private = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with channel(made, certificate, private) as stranger, pytest.raises(grpc.RpcError) as refusal:
        AggregationStub(stranger).GetStatus(pb.StatusRequest(), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_site_cannot_speak_for_another(running: Running) -> None:
    made, _, _ = running
    tls = credentials(made, "site-3").tls

    with channel(made, tls.certificate, tls.private_key) as own, pytest.raises(grpc.RpcError) as refusal:
        AggregationStub(own).SubmitReceipt(pb.SubmitReceiptRequest(site_id=1), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_site_with_another_policy_is_told_which_document_differs(running: Running) -> None:
    made, _, _ = running
    tls = credentials(made, "site-3").tls

    with channel(made, tls.certificate, tls.private_key) as own, pytest.raises(grpc.RpcError) as refusal:
        AggregationStub(own).Join(pb.JoinRequest(run_id="test-run", policy_hash=bytes(32)), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "policy_hash" in (refusal.value.details() or "")


def test_the_status_tells_who_is_there(running: Running) -> None:
    made, _, _ = running
    tls = credentials(made, "site-3").tls
    with channel(made, tls.certificate, tls.private_key) as own:
        status = AggregationStub(own).GetStatus(pb.StatusRequest(), timeout=10)

    assert [(site.name, site.present) for site in status.sites] == [
        ("site-1", True),
        ("site-2", True),
        ("site-3", False),
    ]
    assert (status.run_id, status.phase, status.rounds_planned) == ("test-run", "waiting", 2)


def test_the_health_service_answers(running: Running) -> None:
    made, _, _ = running
    tls = credentials(made, "site-3").tls
    with channel(made, tls.certificate, tls.private_key) as own:
        request = health_pb2.HealthCheckRequest(service="fedmvp.v1.Aggregation")
        reply = health_pb2_grpc.HealthStub(own).Check(request, timeout=10)

    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_the_servers_folder_holds_no_sites_private_key(running: Running) -> None:
    made, _, _ = running
    content = b"\0".join(path.read_bytes() for path in sorted(made.server_folder.rglob("*")) if path.is_file())
    for name in made.study.site_configs:
        held = credentials(made, name)
        raw = held.signing_key.to_bytes()
        pem = ed25519.Ed25519PrivateKey.from_private_bytes(raw).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        for secret in (raw, raw.hex().encode(), pem.splitlines()[1], held.tls.private_key.splitlines()[1]):
            assert secret not in content
    assert (made.server_folder / "server.key").read_bytes().splitlines()[1] in content  # the search can find a key


def test_a_port_in_use_is_one_clear_message(running: Running) -> None:
    made, _, _ = running
    second = made.start_server(listening=False)

    assert second.finish() == ExitCode.NETWORK
    assert "port is in use" in second.errors
    assert "Traceback" not in second.errors


def test_a_site_of_another_consortium_is_told_that_the_certificate_does_not_fit(
    running: Running, federation: Callable[..., Federation]
) -> None:
    made, _, _ = running
    other = federation(sites=3)
    stranger = other.start_site("site-1", "--server", f"127.0.0.1:{made.port}")

    assert stranger.finish() == ExitCode.IDENTITY, stranger.errors
    assert "certificate" in stranger.errors


def test_insecure_is_refused_off_loopback_at_both_ends(running: Running, tmp_path: Path) -> None:
    made, _, _ = running
    site = made.start_site("site-3", "--insecure", "--server", "192.0.2.1:8443")
    elsewhere = tmp_path / "server.toml"
    elsewhere.write_text(made.study.server_config.read_text().replace("127.0.0.1", "192.0.2.1"))
    server = made.start("server", ["-m", "tests.e2e.server_entry", elsewhere, "--insecure"])

    for process in (site, server):
        assert process.finish() == ExitCode.IDENTITY, process.errors
        assert "--insecure is refused" in process.errors


def test_a_site_that_spells_insecure_does_not_reach_a_server_that_does_not(running: Running) -> None:
    made, _, _ = running
    site = made.start_site("site-3", "--insecure", "--reconnect", "0.1")

    assert site.finish() == ExitCode.NETWORK, site.errors


def test_insecure_on_loopback_still_signs_and_completes(federation: Callable[..., Federation]) -> None:
    made = federation(sites=3, policy=policy_text(rounds=1))
    server = made.start_server("--insecure")
    secure = Connection(f"127.0.0.1:{made.port}", credentials(made, "site-1"))
    with pytest.raises(CoordinatorAwayError):
        secure.join()
    secure.close()
    sites = made.start_sites("--insecure")

    for process in (*sites.values(), server):
        assert process.finish() == 0, process.errors
    assert len(made.events("round")) == 1
