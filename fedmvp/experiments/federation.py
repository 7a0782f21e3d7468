"""One cell's federation: the server and its sites, in threads of this process, over the wire without a network.

Everything but the socket is the product's: the signed study, keys and certificates, the coordinator, the ledgers, the
secure sum. Beside it the plain sum of what the sites put in is kept, and every published sum is compared with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmvp.client.runner import ClientOutcome, run_client
from fedmvp.client.update_source import UpdateSource
from fedmvp.errors import UserError
from fedmvp.rpc.in_process import InProcessServer
from fedmvp.server.app import run_server
from fedmvp.server.evaluator import PublicModel
from fedmvp.study.config import load_client_config, load_server_config
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.site import SiteOptions
from fedmvp.study.workshop import Study, create_study
from privacy.ledger import Ledger
from privacy.seeded import SEEDED_DATASET
from secure_agg.client import ClientSession
from secure_agg.messages import PublishedSum

LEDGER_FILE = "ledger.sqlite"

SourceOf = Callable[[Ledger], UpdateSource]
"""Builds a site's trainer on the ledger that will be charged."""


@dataclass(frozen=True, eq=False)
class FederationOutcome:
    """What a federation came to.

    Attributes:
        parameters: after the last round (d,).
        epsilons: what each site's ledger says it spent, by site; infinite without privacy.
        bytes_up: what each site sent, all messages of all rounds together.
        bytes_down: what each site was sent.
        rounds: rounds published.
        sum_error: largest difference of a published sum from the sum of what was put in, in steps of the ring's grid.
    """

    parameters: NDArray[np.float32]
    epsilons: Mapping[str, float]
    bytes_up: Mapping[str, int]
    bytes_down: Mapping[str, int]
    rounds: int
    sum_error: float


class Sums(Protocol):
    """Hears what a site puts into a sum, and the sum that is published."""

    def keep(self, key: tuple[int, int], site: int, vector: NDArray[Any]) -> None:
        """A site puts a vector into the sum of a (round, attempt)."""

    def compare(self, key: tuple[int, int], published: PublishedSum) -> None:
        """A site receives the sum."""


class PlainSums:
    """What the sites put in, kept outside the protocol to compare the published sums with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inputs: dict[tuple[int, int], dict[int, NDArray[Any]]] = {}
        self._checked: set[tuple[int, int]] = set()
        self.largest_error = 0.0
        self.incomplete = False

    @property
    def checked(self) -> int:
        """Sums compared."""
        return len(self._checked)

    def keep(self, key: tuple[int, int], site: int, vector: NDArray[Any]) -> None:
        """Keep a site's input of a (round, attempt)."""
        with self._lock:
            self._inputs.setdefault(key, {})[site] = vector.copy()

    def compare(self, key: tuple[int, int], published: PublishedSum) -> None:
        """Compare a published sum with the plain one, modulo the ring."""
        with self._lock:
            if key in self._checked:
                return
            self._checked.add(key)
            inputs = self._inputs.pop(key)
        self.incomplete |= set(published.survivors) != set(inputs)
        total = published.total
        plain = np.zeros_like(total)
        for site in published.survivors:
            plain += inputs[site]
        signed = np.dtype(f"i{total.dtype.itemsize}")
        self.largest_error = max(self.largest_error, float(np.abs((total - plain).view(signed).astype(float)).max()))


def run_federation(
    folder: Path,
    policy: StudyPolicy,
    sources: Mapping[str, SourceOf],
    model: PublicModel,
) -> FederationOutcome:
    """Carry out all rounds of a policy.

    Args:
        folder: an empty folder; study, keys and ledgers are made in it.
        policy: what is signed.
        sources: each site's trainer by the site's name; called in the site's own thread.
        model: where the server starts, and what it measures after each round.

    Raises:
        UserError: a site or the server stopped for a reason that a person has to mend.
        PrivacyError: a budget was spent before the last round.
    """
    study = make_study(folder, policy, tuple(sources))
    sums, server = PlainSums(), InProcessServer()

    def serve() -> None:
        try:
            config = load_server_config(study.server_config, environment={})
            run_server(config, public_model=model, in_process=server)
        finally:
            server.close()  # whoever waits for it to open must not wait for ever

    def take_part(name: str) -> ClientOutcome:
        return run_client(
            load_client_config(study.site_configs[name], environment={}),
            session_factory=recorded_session(sums),
            source_factory=lambda _config, _policy, ledger: sources[name](ledger),
            reconnect_seconds=0.5,
            server=server,
        )

    with ThreadPoolExecutor(max_workers=len(sources) + 1, thread_name_prefix="cell") as pool:
        sites = {name: pool.submit(take_part, name) for name in sources}
        running: list[Future[Any]] = [pool.submit(serve), *sites.values()]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        except BaseException:
            server.stop()
            raise
        failed = next((future for future in done if future.exception() is not None), None)
        if failed is not None:
            server.stop()
            wait(running)
            failed.result()
    rounds = policy.study.rounds
    ends = [site.result() for site in sites.values()]
    state = ends[0].state
    if state is None or sums.checked != rounds or sums.incomplete or any(end.last_round != rounds for end in ends):
        raise UserError(
            f"{policy.study.run_id}: a site was not in every one of the {rounds} sums, or did not see one",
            remedy="run the study again, with fewer --workers if the machine is slow: finished cells are kept",
        )
    return _outcome(study, state.parameters, server, sums)


def make_study(folder: Path, policy: StudyPolicy, names: tuple[str, ...], *, listen: str = "127.0.0.1:8443") -> Study:
    """Make a cell's consortium, server, sites and ledgers.

    Args:
        folder: an empty folder.
        policy: what is signed.
        names: the sites.
        listen: host:port that the server binds, where it binds one; sites are told the number of a port 0 later.
    """
    limit = policy.privacy.epsilon_max
    options = [
        SiteOptions(name=name, organisation=name, data=folder, dataset_id=dataset_of(name), epsilon_max=limit)
        for name in names
    ]
    study = create_study(folder, policy.document.decode(), sites=options, listen=listen)
    for name, config in study.site_configs.items():
        make_ledger(config.parent / LEDGER_FILE, name, policy).close()
    return study


def make_ledger(path: Path, site: str, policy: StudyPolicy) -> Ledger:
    """Make the ledger of a cell's site, beside which randomness may be seeded, and open it."""
    privacy = policy.privacy
    return Ledger.create(
        path,
        dataset_id=dataset_of(site),
        delta=privacy.delta,
        epsilon_max=privacy.epsilon_max,
        unit=privacy.unit,
        unsafe=privacy.mode == "UNSAFE-no-dp",
    )


def dataset_of(site: str) -> str:
    """Return the name of a cell's site's records."""
    return f"{SEEDED_DATASET}{site}"


def recorded_session(sums: Sums) -> type[ClientSession]:
    """Return the sessions of the secure sum, which tell what goes in and what comes out."""

    class Recorded(ClientSession):
        def masked_input(self, vector: NDArray[Any], *args: Any, **options: Any) -> Any:
            sums.keep((self._context.round, self._context.attempt), self._site_id, vector)
            return super().masked_input(vector, *args, **options)

        def receive_result(self, message: PublishedSum) -> Any:
            sums.compare((self._context.round, self._context.attempt), message)
            return super().receive_result(message)

    return Recorded


def _outcome(
    study: Study, parameters: NDArray[np.float32], server: InProcessServer, sums: PlainSums
) -> FederationOutcome:
    epsilons: dict[str, float] = {}
    up: dict[str, int] = {}
    down: dict[str, int] = {}
    for name, path in study.site_configs.items():
        with Ledger.open(path.parent / LEDGER_FILE, read_only=True) as ledger:
            epsilons[name] = ledger.spent().epsilon
        certificate = load_client_config(path, environment={}).identity.certificate.read_bytes()
        up[name], down[name] = server.sent[certificate], server.received[certificate]
    return FederationOutcome(parameters, epsilons, up, down, sums.checked, sums.largest_error)
