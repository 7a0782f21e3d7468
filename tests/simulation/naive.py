"""A second program for one round, from the specification alone: Python integers and lists, no regard for speed.

It shares no code with the package: its own X25519, HKDF, counter modes, secret sharing, graph and encoding. The AES
block, Ed25519 and ChaCha20-Poly1305 are borrowed. A round is recomputed from the sites' random bytes, byte for byte:
every message of every site, every announcement of the server, every hash and the sum. A message is a dictionary.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from fractions import Fraction
from math import comb

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

P = 2**255 - 19  # the curve's field
Q = 2**256 + 297  # the field of the secret shares
BASE = (9).to_bytes(32, "little")
PHASES = ("keys", "nonce", "shares", "input", "confirmation", "unmask")
SELF_MASK, MASK_KEY = 1, 2

Exchange = Callable[[bytes, bytes], bytes]
Draw = Callable[[int], bytes]


def encode(tag: str, *fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in (tag.encode(), *fields))


def sha(tag: str, *fields: bytes) -> bytes:
    return hashlib.sha256(encode(tag, *fields)).digest()


def n4(value: int) -> bytes:
    return struct.pack(">I", value)


def n8(value: int) -> bytes:
    return struct.pack(">Q", value)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5, by the Montgomery ladder."""
    k = int.from_bytes(scalar, "little") & ((1 << 254) - 8) | (1 << 254)
    x1 = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in reversed(range(255)):
        if swap := (k >> bit) & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a, c * b, a * a, b * b
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def borrowed_x25519(scalar: bytes, point: bytes) -> bytes:
    """The same by the library, for rounds of a hundred sites."""
    return X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(point))


def aes_counter_bytes(key: bytes, count: int) -> bytes:
    """AES-256 of 0, 1, 2, ... as big-endian blocks."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(block.update(i.to_bytes(16, "big")) for i in range(count // 16 + 1))[:count]


def aes_mask_bytes(key: bytes, count: int) -> bytes:
    """AES-256 of segment, counter as big-endian blocks; the counters 2, 3, 4, ... for each mebibyte."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    places = (divmod(i, 2**20 // 16) for i in range(count // 16 + 1))
    return b"".join(block.update(s.to_bytes(12, "big") + n4(2 + i)) for s, i in places)[:count]


def chacha20_mask_bytes(key: bytes, count: int) -> bytes:
    """The blocks 0, 1, 2, ... of RFC 8439, section 2.3, for each mebibyte, whose number is the nonce, big-endian."""
    places = (divmod(i, 2**20 // 64) for i in range(count // 64 + 1))
    return b"".join(_chacha20_block(key, i, s.to_bytes(12, "big")) for s, i in places)[:count]


def _chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    parts = (b"expand 32-byte k", key, counter.to_bytes(4, "little"), nonce)
    start = struct.unpack("<16I", b"".join(parts))
    s = list(start)

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for one, other, third, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[one] = (s[one] + s[other]) % 2**32
            mixed = s[third] ^ s[one]
            s[third] = (mixed << turn | mixed >> (32 - turn)) % 2**32

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((x + y) % 2**32 for x, y in zip(s, start, strict=True)))


def mask_integers(seed: bytes, count: int, bits: int, cipher: str = "aes-256-ctr") -> list[int]:
    """A mask: the keystream read as little-endian integers of the ring."""
    width = bits // 8
    raw = {"aes-256-ctr": aes_mask_bytes, "chacha20": chacha20_mask_bytes}[cipher](seed, count * width)
    return [int.from_bytes(raw[i * width : (i + 1) * width], "little") for i in range(count)]


def vector_bytes(vector: list[int], bits: int) -> bytes:
    return b"".join(value.to_bytes(bits // 8, "little") for value in vector)


def vector_hash(vector: list[int], bits: int) -> bytes:
    """Hash a vector: its type, its length, and one hash for each mebibyte begun."""
    raw = vector_bytes(vector, bits)
    pieces = [hashlib.sha256(raw[i : i + 2**20]).digest() for i in range(0, len(raw), 2**20)]
    return sha("fedmvp/vector/v1", b"<u%d" % (bits // 8), n8(len(vector)), b"".join(pieces))


def draw_element(draw: Draw) -> int:
    """A field element: 257 random bits, again and again until they are below the prime."""
    while (value := int.from_bytes(draw(33), "big") % 2**257) >= Q:
        pass
    return value


def deal(secret: bytes, threshold: int, points: list[int], draw: Draw) -> dict[int, bytes]:
    """Shares of a secret: a polynomial with the secret at 0, evaluated power by power."""
    polynomial = [int.from_bytes(secret, "big")] + [draw_element(draw) for _ in range(threshold - 1)]
    return {x: (sum(a * x**k for k, a in enumerate(polynomial)) % Q).to_bytes(33, "big") for x in points}


def recombine(shares: dict[int, bytes]) -> bytes:
    """The secret of exactly as many shares as are needed, by Lagrange at 0."""
    total = 0
    for x, share in shares.items():
        weight = 1
        for z in shares:
            if z != x:
                weight = weight * z * pow(z - x, -1, Q) % Q
        total += int.from_bytes(share, "big") * weight
    return (total % Q).to_bytes(32, "big")


def exceeded(population: int, marked: int, draws: int, more_than: int) -> Fraction:
    """The probability of more than some marked ones among draws without replacement."""
    ways = sum(comb(marked, k) * comb(population - marked, draws - k) for k in range(more_than + 1, draws + 1))
    return Fraction(ways, comb(population, draws))


def sparse_choice(n: int, colluders: int, dropped: int) -> tuple[int, int] | None:
    """The degree and share threshold of a sparse graph, tried from the smallest; None if there is none."""
    others = n - dropped - 1
    if 2 * dropped + colluders >= others:
        return None
    graphs = 16 * sum(comb(n, k) for k in range(min(dropped, 64) + 1))
    secure, correct = Fraction(1, 2**40), Fraction(1, 2**20)
    while secure.denominator < 2**40 * 2 * n * graphs:
        secure /= 2
    while correct.denominator < 2**20 * n:
        correct /= 2
    for half in range(1, others // 2 + 1):
        beside = next(a for a in range(half + 1) if exceeded(others, min(colluders, others), half, a) <= secure)
        lost = next(a for a in range(2 * half + 1) if exceeded(others, min(dropped, others), 2 * half, a) <= correct)
        threshold = half + beside + 2
        if 2 * half + 1 - lost >= threshold:
            return 2 * half, threshold
    return None


def circle_order(sites: list[int], seed: bytes) -> list[int]:
    """Fisher and Yates from the last position down, with 64-bit words of AES in counter mode."""
    raw = aes_counter_bytes(hkdf(seed, b"", encode("fedmvp/graph-order/v1")), 64 * len(sites) + 1024)
    words = iter(struct.unpack(f"<{len(raw) // 8}Q", raw))
    order = sorted(sites)
    for i in range(len(order) - 1, 0, -1):
        j = next(word for word in words if word < 2**64 // (i + 1) * (i + 1)) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def roster_hash(roster: dict) -> bytes:
    fields = [n4(roster["version"])]
    for site in sorted(roster["entries"], key=lambda site: site["site_id"]):
        fields += [n4(site["site_id"]), site["name"].encode(), site["organisation"].encode()]
        fields += [site["verify_key"], site["tls_key_sha256"], b"\x01" if site["revoked"] else b"\x00"]
    return sha("fedmvp/roster/v1", *fields)


class NaiveRound:
    """One round of the sites of a cohort, from what each of them keeps to itself.

    ``roster``, ``policy`` and ``announced`` are dictionaries of their fields; ``signing`` the private keys, ``draw``
    the random bytes, ``heads`` the ledger heads and ``inputs`` the ring elements of each site. ``answers`` gives the
    sites that answer in each phase of PHASES; everybody does in a phase that it leaves out.
    """

    def __init__(
        self,
        *,
        roster: dict,
        policy: dict,
        announced: dict,
        signing: dict[int, bytes],
        draw: dict[int, Draw],
        heads: dict[int, bytes],
        inputs: dict[int, list[int]],
        answers: dict[str, list[int]] | None = None,
        exchange: Exchange = x25519,
    ) -> None:
        self.roster, self.policy, self.announced = roster, policy, announced
        self.signing = {site: Ed25519PrivateKey.from_private_bytes(raw) for site, raw in signing.items()}
        self.draw, self.heads, self.inputs, self.exchange = draw, heads, inputs, exchange
        self.answers = answers or {}
        self.bits = policy["ring_bits"]
        self.index = {e: i + 1 for i, e in enumerate(sorted(entry["site_id"] for entry in roster["entries"]))}
        self.sent: dict[str, dict[int, dict]] = {phase: {} for phase in PHASES}
        self._announce()
        self._keys()
        self._graph()
        self._shares()
        self._inputs()
        self._confirm()
        self._unmask()

    def _who(self, phase: str, before: list[int]) -> list[int]:
        return [site for site in before if site in self.answers.get(phase, before)]

    def _sign(self, site: int, tag: str, *fields: bytes) -> bytes:
        return self.signing[site].sign(encode(tag, *fields))

    def _announce(self) -> None:
        cohort, c = sorted(self.announced["cohort"]), self.policy["colluders"]
        n = len(cohort)
        self.threshold = (n + c) // 2 + 1
        choice = sparse_choice(n, c, -(-n * self.policy["dropout_permille"] // 1000)) if n > 100 else None
        self.sparse = choice is not None
        self.degree, self.share_threshold = choice or (n - 1, self.threshold)
        length = self.policy["dimension"] + (self.policy["max_weight"] is not None)
        self.context_hash = sha(
            "fedmvp/context/v1",
            self.announced["run_id"].encode(),
            n8(self.announced["round"]),
            n4(self.announced["attempt"]),
            self.announced["policy_hash"],
            roster_hash(self.roster),
            self.announced["model_hash"],
            b"".join(n4(site) for site in cohort),
            n4(self.threshold),
            n4(c),
            n4(self.bits),
            n8(length),
            b"harary" if self.sparse else b"complete",
            n4(self.degree),
            n4(self.share_threshold),
        )
        self.length, self.u0 = length, cohort

    def _keys(self) -> None:
        """Each site draws a nonce on a sparse graph, then its encryption key, then its mask key."""
        self.encryption, self.mask, self.nonce = {}, {}, {}
        self.u1 = self._who("keys", self.u0)
        for site in self.u1:
            committed = b""
            if self.sparse:
                self.nonce[site] = self.draw[site](32)
                committed = sha("fedmvp/nonce-commitment/v1", self.context_hash, n4(site), self.nonce[site])
            self.encryption[site], self.mask[site] = self.draw[site](32), self.draw[site](32)
            publics = self.exchange(self.encryption[site], BASE), self.exchange(self.mask[site], BASE)
            content = (*publics, self.heads[site], committed)
            self.sent["keys"][site] = {
                "sender": site,
                "encryption_key": content[0],
                "mask_key": content[1],
                "ledger_head": content[2],
                "nonce_commitment": content[3],
                "signature": self._sign(site, "fedmvp/advertise/v1", self.context_hash, n4(site), *content),
            }
        listed = []
        for site in self.u1:
            advert = self.sent["keys"][site]
            listed += [n4(site), advert["encryption_key"], advert["mask_key"], advert["ledger_head"]]
            listed += [advert["nonce_commitment"]]
        self.t1 = sha("fedmvp/keys-transcript/v1", self.context_hash, *listed)
        self.peer_keys = {"adverts": [self.sent["keys"][site] for site in self.u1]}

    def _graph(self) -> None:
        """The circle on a sparse graph; who is beside whom."""
        self.vertices, self.g = self.u1, self.t1
        self.circle: list[int] = []
        if not self.sparse:
            self.beside = {site: [peer for peer in self.u1 if peer != site] for site in self.u1}
            return
        self.vertices = self._who("nonce", self.u1)
        self.sent["nonce"] = {site: {"sender": site, "nonce": self.nonce[site]} for site in self.vertices}
        self.peer_nonces = {"nonces": [self.sent["nonce"][site] for site in self.vertices]}
        listed = [part for site in self.vertices for part in (n4(site), self.nonce[site])]
        self.g = sha("fedmvp/graph-transcript/v1", self.t1, *listed)
        self.circle = circle_order(self.vertices, self.g)
        self.beside = {}
        for site in self.vertices:
            place = self.circle.index(site)
            steps = [step for step in range(-self.degree // 2, self.degree // 2 + 1) if step != 0]
            self.beside[site] = sorted(self.circle[(place + step) % len(self.circle)] for step in steps)

    def _shares(self) -> None:
        """Each site draws its self mask, then the polynomial of its mask key, then that of its self mask."""
        self.self_mask: dict[int, bytes] = {}
        self.held: dict[int, dict[int, tuple[bytes, bytes]]] = {site: {} for site in self.vertices}  # by holder
        self.u2 = self._who("shares", self.vertices)
        for site in self.u2:
            secret = self.self_mask[site] = self.draw[site](32)
            commitment = sha("fedmvp/self-mask-commitment/v1", self.g, n4(site), secret)
            holders = sorted([site, *self.beside[site]])
            points = [self.index[holder] for holder in holders]
            of_key = deal(self.mask[site], self.share_threshold, points, self.draw[site])
            of_mask = deal(secret, self.share_threshold, points, self.draw[site])
            sealed = []
            for holder in holders:
                pair = of_key[self.index[holder]], of_mask[self.index[holder]]
                self.held[holder][site] = pair
                if holder != site:
                    sealed.append(self._sealed(site, holder, commitment, pair))
            self.sent["shares"][site] = {"sender": site, "commitment": commitment, "shares": sealed}
        listed = [part for site in self.u2 for part in (n4(site), self.sent["shares"][site]["commitment"])]
        self.t2 = sha("fedmvp/shares-transcript/v1", self.g, *listed)
        self.peer_shares = {site: self._inbox(site) for site in self.u2}

    def _sealed(self, site: int, holder: int, commitment: bytes, pair: tuple[bytes, bytes]) -> dict:
        shared = self.exchange(self.encryption[site], self.sent["keys"][holder]["encryption_key"])
        key = hkdf(shared, self.g, encode("fedmvp/share-key/v1", n4(site), n4(holder)))
        bound = encode("fedmvp/sealed-share/v1", self.g, n4(site), n4(holder))
        ciphertext = ChaCha20Poly1305(key).encrypt(bytes(12), pair[0] + pair[1], bound)
        hashed = hashlib.sha256(ciphertext).digest()
        signature = self._sign(site, "fedmvp/share/v1", self.g, n4(site), n4(holder), commitment, hashed)
        return {"recipient": holder, "ciphertext": ciphertext, "signature": signature}

    def _inbox(self, site: int) -> dict:
        """What the server passes on to a site of U2."""
        arrived = []
        for sender in self.u2:
            for share in self.sent["shares"][sender]["shares"]:
                if share["recipient"] == site:
                    commitment = self.sent["shares"][sender]["commitment"]
                    passed = {"ciphertext": share["ciphertext"], "signature": share["signature"]}
                    arrived.append({"sender": sender, "commitment": commitment} | passed)
        return {"shares": arrived, "commitments": [[s, self.sent["shares"][s]["commitment"]] for s in self.u2]}

    def self_seed(self, site: int, self_mask: bytes) -> bytes:
        return hkdf(self_mask, self.t2, encode("fedmvp/self-mask/v1", n4(site)))

    def pair_seed(self, owner: int, owners_key: bytes, other: int) -> bytes:
        secret = self.exchange(owners_key, self.sent["keys"][other]["mask_key"])
        return hkdf(secret, self.t2, encode("fedmvp/pair-mask/v1", n4(min(owner, other)), n4(max(owner, other))))

    def _stream(self, seed: bytes) -> list[int]:
        return mask_integers(seed, self.length, self.bits, self.policy["mask_cipher"])

    def _add(self, vector: list[int], sign: int, other: list[int]) -> list[int]:
        return [(v + sign * m) % 2**self.bits for v, m in zip(vector, other, strict=True)]

    def _inputs(self) -> None:
        self.u3 = self._who("input", self.u2)
        for site in self.u3:
            masked = self._add(self.inputs[site], 1, self._stream(self.self_seed(site, self.self_mask[site])))
            for peer in self.beside[site]:
                if peer in self.u2:
                    stream = self._stream(self.pair_seed(site, self.mask[site], peer))
                    masked = self._add(masked, 1 if peer < site else -1, stream)
            hashed = vector_hash(masked, self.bits)
            signature = self._sign(site, "fedmvp/masked-input/v1", self.t2, n4(site), hashed)
            self.sent["input"][site] = {"sender": site, "vector": masked, "digest": hashed, "signature": signature}
        fields = ("sender", "digest", "signature")
        self.survivors = {"inputs": [{f: self.sent["input"][site][f] for f in fields} for site in self.u3]}

    def _confirm(self) -> None:
        digests = [self.sent["input"][site]["digest"] for site in self.u3]
        listed = b"".join(n4(site) for site in self.u3)
        self.agreed = (self.t2, listed, sha("fedmvp/masked-inputs/v1", *digests))
        self.u4 = self._who("confirmation", self.u3)
        for site in self.u4:
            signature = self._sign(site, "fedmvp/survivors/v1", *self.agreed)
            self.sent["confirmation"][site] = {"sender": site, "signature": signature}
        self.confirmations = {"confirmations": [self.sent["confirmation"][site] for site in self.u4]}

    def _unmask(self) -> None:
        self.u5 = self._who("unmask", self.u4)
        for site in self.u5:
            released = []
            for owner in sorted([site, *self.beside[site]]):
                if owner in self.u2:
                    kind = SELF_MASK if owner in self.u3 else MASK_KEY
                    share = self.held[site][owner][1 if kind == SELF_MASK else 0]
                    released.append({"owner": owner, "kind": kind, "share": share})
            self.sent["unmask"][site] = {"sender": site, "shares": released}
        total = [0] * self.length
        for site in self.u3:
            total = self._add(total, 1, self.sent["input"][site]["vector"])
        self.recovered: dict[int, bytes] = {owner: self._recover(owner) for owner in self.u2}
        for owner in self.u2:
            if owner in self.u3:
                total = self._add(total, -1, self._stream(self.self_seed(owner, self.recovered[owner])))
                continue
            for peer in self.beside[owner]:
                if peer in self.u3:  # who added this mask if its own id is the larger one
                    stream = self._stream(self.pair_seed(owner, self.recovered[owner], peer))
                    total = self._add(total, -1 if owner < peer else 1, stream)
        self.total = total
        parts = []
        for item in self.confirmations["confirmations"]:
            parts += [n4(item["sender"]), item["signature"]]
        signed = sha("fedmvp/confirmations/v1", *parts)
        self.round_hash = sha("fedmvp/round-transcript/v1", *self.agreed, signed, vector_hash(total, self.bits))
        self.published = {"total": total, "survivors": self.u3, "transcript_hash": self.round_hash}

    def _recover(self, owner: int) -> bytes:
        """A secret from the released shares of the lowest indices."""
        given = {}
        for holder in self.u5:
            for share in self.sent["unmask"][holder]["shares"]:
                if share["owner"] == owner:
                    given[self.index[holder]] = share["share"]
        return recombine({x: given[x] for x in sorted(given)[: self.share_threshold]})
