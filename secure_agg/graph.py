"""Which pairs of sites share a mask and each other's secrets: everybody, or a sparse random graph for large cohorts.

Up to COMPLETE_GRAPH_LIMIT_SITES every pair does. Above, the sites stand in a circle in an order that nobody could
foresee, and each is paired with the ``degree / 2`` nearest on either side: a Harary graph on a random permutation,
after SecAgg+ (Bell et al. 2020, section 3). Degree and share threshold are chosen here so that the sum stays one sum
of all honest survivors *whichever* sites the server declares dropped; docs/secure-aggregation.md has the argument.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.encoding import canonical
from secure_agg.keys import derive

COMPLETE_GRAPH_LIMIT_SITES = 100
SECURITY_BITS = 40  # an attempt's sum splits with a probability of at most 2^-40
CORRECTNESS_BITS = 20  # an attempt with the stated dropouts fails for lack of shares with at most 2^-20
MAX_WITHHELD_NONCES = 64  # sites that may fall silent between their keys and their nonce, in the largest cohorts
MAX_ATTEMPTS = 16  # attempts at one round that a site joins on a sparse graph: each is another throw of the dice

_WORD_BYTES = 8
_WORDS = 2 ** (8 * _WORD_BYTES)


@dataclass(frozen=True)
class GraphParameters:
    """The graph of one attempt.

    Args:
        sparse: whether it is a Harary graph; the complete graph otherwise.
        degree: neighbours of each site, even on a sparse graph; every other site on the complete graph.
        share_threshold: shares that recover a site's secret, out of those its neighbours and itself hold.
        key_floor: fewest sites that may be in the graph.
        max_withheld: most sites with keys that may be missing from it.
    """

    sparse: bool
    degree: int
    share_threshold: int
    key_floor: int
    max_withheld: int = 0

    @property
    def name(self) -> str:
        """The name in the round context."""
        return "harary" if self.sparse else "complete"


@lru_cache(maxsize=256)
def sparse_parameters(n: int, colluders: int, dropped: int) -> GraphParameters | None:
    """Find the smallest degree that serves a cohort, and its share threshold.

    With h = degree / 2, every honest site has at most ``a`` colluders among the h sites on either side but for a
    probability of 2^-SECURITY_BITS over all sites and all graphs that an adversary could choose from. A secret needs
    h + a + 2 shares: more than one side, the colluders of the other and the owner can give. Every site keeps that many
    holders but for a probability of 2^-CORRECTNESS_BITS when ``dropped`` sites fall silent at random.

    Args:
        n: sites invited.
        colluders: sites that may collude with the server, chosen before the graph is.
        dropped: sites that may fall silent in all phases together.

    Returns:
        The parameters, or None if only the complete graph would do.
    """
    others = n - dropped - 1  # in the smallest graph allowed, seen from one site
    if 2 * dropped + colluders >= others:
        return None  # not even the means leave enough holders
    max_withheld = min(dropped, MAX_WITHHELD_NONCES)
    throws = MAX_ATTEMPTS * sum(comb(n, withheld) for withheld in range(max_withheld + 1))
    security = SECURITY_BITS + _ceil_log2(2 * n * throws)
    correctness = CORRECTNESS_BITS + _ceil_log2(n)
    for half in range(1, others // 2 + 1):
        beside = _exceeded_rarely(others, colluders, half, security)
        threshold = half + beside + 2
        if threshold > 2 * half + 1:
            continue
        if 2 * half + 1 - _exceeded_rarely(others, dropped, 2 * half, correctness) >= threshold:
            return GraphParameters(True, 2 * half, threshold, n - dropped, max_withheld)
    return None


def _ceil_log2(value: int) -> int:
    return (value - 1).bit_length()


def _exceeded_rarely(population: int, marked: int, draws: int, bits: int) -> int:
    """Return the smallest a with P[more than a marked among the draws] <= 2^-bits, drawing without replacement."""
    marked = min(marked, population)
    unmarked, most = population - marked, min(marked, draws)
    total, tail = comb(population, draws), 0
    ways = comb(marked, most) * comb(unmarked, draws - most)
    for a in range(most, 0, -1):
        tail += ways
        if tail << bits > total:
            return a
        ways = ways * a * (unmarked - draws + a) // ((marked - a + 1) * (draws - a + 1))
    return 0


class Graph:
    """The drawn graph of one attempt: who is paired with whom.

    Args:
        parameters: degree and kind.
        members: ids of the sites in it, in any order.
        seed: 32 bytes that nobody could foresee; not used on the complete graph.
    """

    def __init__(self, parameters: GraphParameters, members: Collection[int], seed: bytes) -> None:
        ordered = sorted(members)
        self._half = parameters.degree // 2 if parameters.sparse else len(ordered)
        self._circle = shuffled(ordered, seed) if parameters.sparse else ordered
        self._position = {site_id: position for position, site_id in enumerate(self._circle)}

    @property
    def members(self) -> tuple[int, ...]:
        """The sites in the graph, ascending."""
        return tuple(sorted(self._circle))

    def neighbours(self, site_id: int) -> frozenset[int]:
        """Return the sites paired with one: those within half a degree on either side of it in the circle."""
        count, position = len(self._circle), self._position[site_id]
        reach = min(self._half, count // 2)
        return frozenset(self._circle[(position + step) % count] for step in range(-reach, reach + 1)) - {site_id}


def shuffled(ordered: list[int], seed: bytes) -> list[int]:
    """Shuffle a list by Fisher and Yates with the AES-256-CTR keystream of a key derived from the seed.

    The keystream is read as little-endian 64-bit words. For each position i from the last down to 1, the first word
    below the largest multiple of i + 1 that 64 bits hold gives j = word mod (i + 1), and items i and j change places.
    """
    key = derive(seed, salt=b"", info=canonical("fedmvp/graph-order/v1"))
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    circle = list(ordered)
    for last in range(len(circle) - 1, 0, -1):
        limit = _WORDS - _WORDS % (last + 1)
        word = limit
        while word >= limit:
            word = int.from_bytes(stream.update(bytes(_WORD_BYTES)), "little")
        chosen = word % (last + 1)
        circle[last], circle[chosen] = circle[chosen], circle[last]
    return circle
