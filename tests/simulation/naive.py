"""A second implementation of the masked input, from docs/secure-aggregation.md alone.

It shares no code with the package: its own X25519, HKDF, counter mode and encoding, in plain integers and without any
regard for speed. Only the AES block is borrowed.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

P = 2**255 - 19


def encode(tag: str, *fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in (tag.encode(), *fields))


def sha(tag: str, *fields: bytes) -> bytes:
    return hashlib.sha256(encode(tag, *fields)).digest()


def n4(value: int) -> bytes:
    return struct.pack(">I", value)


def n8(value: int) -> bytes:
    return struct.pack(">Q", value)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
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


def stream(seed: bytes, count: int, bits: int) -> list[int]:
    """AES-256 of 0, 1, 2, ... read as little-endian integers of the ring."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    width = bits // 8
    raw = b"".join(block.update(i.to_bytes(16, "big")) for i in range(count * width // 16 + 1))
    return [int.from_bytes(raw[i * width : (i + 1) * width], "little") for i in range(count)]


class NaiveRound:
    """One round in which nobody drops, from the sites' private values.

    ``private`` gives (encryption key, mask key, self mask) and ``heads`` the ledger head of each site.
    """

    def __init__(self, context: dict, private: dict[int, tuple[bytes, bytes, bytes]], heads: dict[int, bytes]) -> None:
        base = (9).to_bytes(32, "little")
        self.bits, self.private, self.sites = context["ring_bits"], private, sorted(private)
        self.public = {site: (x25519(keys[0], base), x25519(keys[1], base)) for site, keys in private.items()}
        self.context_hash = sha(
            "fedmvp/context/v1",
            context["run_id"].encode(),
            n8(context["round"]),
            n4(context["attempt"]),
            bytes.fromhex(context["policy_hash"]),
            bytes.fromhex(context["roster_hash"]),
            bytes.fromhex(context["model_hash"]),
            b"".join(n4(site) for site in context["cohort"]),
            n4(context["threshold"]),
            n4(context["colluders"]),
            n4(context["ring_bits"]),
            n8(context["dimension"]),
            context["graph"].encode(),
        )
        listed = [part for site in self.sites for part in (n4(site), *self.public[site], heads[site])]
        self.t1 = sha("fedmvp/keys-transcript/v1", self.context_hash, *listed)
        self.commitments = {
            site: sha("fedmvp/self-mask-commitment/v1", self.t1, n4(site), private[site][2]) for site in self.sites
        }
        listed = [part for site in self.sites for part in (n4(site), self.commitments[site])]
        self.t2 = sha("fedmvp/shares-transcript/v1", self.t1, *listed)

    def pair_seed(self, one: int, other: int) -> bytes:
        secret = x25519(self.private[one][1], self.public[other][1])
        info = encode("fedmvp/pair-mask/v1", n4(min(one, other)), n4(max(one, other)))
        return hkdf(secret, self.t2, info)

    def self_seed(self, site: int) -> bytes:
        return hkdf(self.private[site][2], self.t2, encode("fedmvp/self-mask/v1", n4(site)))

    def masked(self, site: int, values: list[int]) -> bytes:
        """The masked vector of one site as little-endian bytes."""
        out = [v + m for v, m in zip(values, stream(self.self_seed(site), len(values), self.bits), strict=True)]
        for peer in self.sites:
            if peer != site:
                sign = 1 if peer < site else -1
                mask = stream(self.pair_seed(site, peer), len(values), self.bits)
                out = [v + sign * m for v, m in zip(out, mask, strict=True)]
        return b"".join((v % 2**self.bits).to_bytes(self.bits // 8, "little") for v in out)
