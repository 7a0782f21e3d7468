"""Runs a case: one call on a primitive, or one message of a seeded round, altered and handed to a session.

The format is described in the README beside this file.
"""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from secure_agg import errors, messages, transcript
from secure_agg.client import ClientSession
from secure_agg.context import RoundContext, validate_context
from secure_agg.encoding import canonical, digest, tensors_digest, u32, u64, vector_digest
from secure_agg.graph import Graph, GraphParameters, shuffled, sparse_parameters
from secure_agg.keys import AgreementKey, SigningKey, derive, verify
from secure_agg.masks import add_masks
from secure_agg.policy import SecureSumPolicy
from secure_agg.release import FileReleases
from secure_agg.ring import check_encoded, decode_sum, encode
from secure_agg.roster import Roster, RosterEntry
from secure_agg.server import ServerSession
from secure_agg.shamir import recover, recover_verified, split
from secure_agg.sharing import open_shares, pair_mask_seed, seal_shares, self_mask_seed
from secure_agg.signed import sign_document, verify_document
from secure_agg.transitions import ClientState, ServerState, Step
from tests.simulation.federation import Releases, signing_key
from tests.vectors.base import BASES, BaseRound, plain, seeded_bytes
from tests.vectors.freeze import hexadecimal, long_vector

FOLDER = Path(__file__).parent / "cases"
Case = dict[str, Any]

# The messages that hold a list of other messages, by the list's field.
LISTED = {
    "PeerKeys": ("adverts", "AdvertiseKeys"),
    "PeerNonces": ("nonces", "GraphNonce"),
    "ShareKeys": ("shares", "EncryptedShare"),
    "PeerShares": ("shares", "PeerShare"),
    "Survivors": ("inputs", "InputDigest"),
    "Confirmations": ("confirmations", "SurvivorConfirmation"),
    "UnmaskShares": ("shares", "UnmaskShare"),
}
# What each server call takes: the phase and the class of its message.
RECEIVED = {
    "receive_advertise_keys": ("keys", "AdvertiseKeys"),
    "receive_nonce": ("nonce", "GraphNonce"),
    "receive_share_keys": ("shares", "ShareKeys"),
    "receive_masked_input": ("input", "MaskedInput"),
    "receive_confirmation": ("confirmation", "SurvivorConfirmation"),
    "receive_unmask_shares": ("unmask", "UnmaskShares"),
}
CLOSED = {
    "close_advertise_keys": "receive_advertise_keys",
    "close_nonces": "receive_nonce",
    "close_share_keys": "receive_share_keys",
    "close_masked_inputs": "receive_masked_input",
    "close_confirmations": "receive_confirmation",
    "close_unmask": "receive_unmask_shares",
}
# What each client call takes, in their order; None for calls without a message.
ANSWERED: dict[str, str | None] = {
    "advertise_keys": None,
    "receive_peer_keys": "PeerKeys",
    "reveal_nonce": "PeerKeys",
    "receive_peer_nonces": "PeerNonces",
    "receive_peer_shares": "PeerShares",
    "masked_input": None,
    "receive_survivors": "Survivors",
    "receive_confirmations": "Confirmations",
    "receive_result": "PublishedSum",
}


def load() -> list[Case]:
    """Every case of every file, each with its file's defaults filled in."""
    cases = []
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text())
        for case in content["cases"]:
            defaults = content.get("defaults", {}).get(case["what"], {})
            cases.append(case | {"file": path.stem, "in": defaults | case["in"]})
    return cases


def key(case: Case) -> tuple[str, str, str]:
    """What makes a case another fact: the step and the field, and the error class or what was called."""
    return case["step"], case["expect"].get("error", case["what"]), case["field"]


def run(case: Case) -> None:
    """Run a case; AssertionError if what happens is not what it expects."""
    name, expected = case["name"], case["expect"]
    outcome, refusal = None, None
    try:
        outcome = OPERATIONS[case["what"]](case["in"])
    except Exception as error:  # noqa: BLE001 - any error is an outcome to compare
        refusal = error
    if refusal is None:
        assert "error" not in expected, f"{name}: nothing was refused"
        found = hexadecimal(outcome)
        assert found == expected["value"], f"{name}: {found}"
        return
    said = f"{name}: {type(refusal).__name__}: {refusal}"
    assert "error" in expected, said
    assert type(refusal).__name__ == expected["error"], said
    assert expected["says"] in str(refusal), said
    if isinstance(refusal, errors.RemoteProtocolError):
        assert refusal.peer == expected["peer"], said
    if isinstance(refusal, errors.RemoteProtocolError | errors.AggregationAborted) and case["step"] in set(Step):
        assert refusal.step == case["step"], said


def error_class(name: str) -> type[Exception]:
    """The class an expectation names."""
    return getattr(errors, name, None) or getattr(builtins, name)


# --- messages of a seeded round ---


def build(kind: str, value: dict[str, Any]) -> Any:
    """A message from its plain form, as the edge of a program builds it from the wire."""
    fields = dict(value)
    if kind in LISTED:
        field, item = LISTED[kind]
        fields[field] = tuple(build(item, one) for one in fields[field])
    if "commitments" in fields:
        fields["commitments"] = tuple((site, commitment) for site, commitment in fields["commitments"])
    if "survivors" in fields:
        fields["survivors"] = tuple(fields["survivors"])
    return getattr(messages, kind)(**fields)


def locate(message: Any, path: str) -> tuple[Any, Any]:
    """The container and key of a path such as "adverts[12].mask_key"; [12] is the item of site 12."""
    tokens = re.findall(r"[a-z_0-9]+|\[\d+\]", path)
    here: Any = message
    for token in tokens[:-1]:
        here = here[position(here, token)]
    return here, position(here, tokens[-1])


def position(container: Any, token: str) -> Any:
    """Where a token points in a container."""
    if not token.startswith("["):
        return ["site", "commitment"].index(token) if isinstance(container, list) else token
    wanted = int(token[1:-1])
    if isinstance(container, dict):
        return wanted
    for place, item in enumerate(container):
        first = next(iter(item.values())) if isinstance(item, dict) else item[0] if isinstance(item, list) else None
        if first == wanted:
            return place
    return wanted  # a list of numbers


def alter(message: dict[str, Any], edits: list[dict[str, Any]], base: BaseRound) -> dict[str, Any]:
    """Apply a case's edits to a plain message."""
    honest, message = message, deepcopy(message)
    for edit in edits:
        (verb, path), *_ = edit.items()
        if verb == "sign":
            sign(message, path, edit, base)
        elif verb == "drop":
            container, place = locate(message, path)
            del container[place]
        elif verb == "repeat":
            container, place = locate(message, path)
            container.append(deepcopy(container[place]))
        else:
            container, place = locate(message, path)
            container[place] = CHANGES[verb](container[place], edit, honest)
    return message


def copied(_old: Any, edit: dict[str, Any], honest: dict[str, Any]) -> Any:
    """What the honest message holds elsewhere."""
    container, place = locate(honest, edit["from"])
    return container[place]


# The edits that put one value in the place of another, as functions of the old value, the edit and the honest message.
CHANGES: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], Any]] = {
    "set": lambda old, edit, _: bytes.fromhex(edit["to"]) if isinstance(old, bytes) else edit["to"],
    "flip": lambda old, _, __: bytes([old[0] ^ 1]) + old[1:] if isinstance(old, bytes) else old ^ 1,
    "cut": lambda old, _, __: old[:-1],
    "keep": lambda old, edit, _: old[: edit["first"]],
    "type": lambda old, edit, _: np.array(old, dtype=edit["to"]),
    "copy": copied,
}


def sign(message: dict[str, Any], path: str, edit: dict[str, Any], base: BaseRound) -> None:
    """Sign a statement again with the sender's own key, over what it now says or over what "with" says."""
    container, place = locate({"message": message}, path)
    item, given, federation = container[place], edit.get("with", {}), base.federation
    changes = {name: unhex(RoundContext, name, value) for name, value in given.items() if name in CONTEXT_FIELDS}
    context = dataclasses.replace(federation.context, **changes)
    keys_hash = bytes.fromhex(given["keys_hash"]) if "keys_hash" in given else federation.server._keys_hash
    shares_hash = bytes.fromhex(given["shares_hash"]) if "shares_hash" in given else federation.server._shares_hash
    sender = item.get("sender", message.get("sender"))
    if edit["statement"] == "advertise":
        content = tuple(item[f] for f in ("encryption_key", "mask_key", "ledger_head", "nonce_commitment"))
        tag, fields = transcript.advertise_statement(context, sender, content)
    elif edit["statement"] == "share":
        commitment = item.get("commitment", message.get("commitment"))
        recipient = item.get("recipient", given.get("recipient"))
        tag, fields = transcript.share_statement(keys_hash, sender, recipient, commitment, item["ciphertext"])
    elif edit["statement"] == "input":
        tag, fields = transcript.input_statement(shares_hash, sender, item["digest"])
    elif edit["statement"] == "survivors":
        members = [one for one in federation.survivors.inputs if one.sender in given.get("members", [one.sender])]
        tag, fields = transcript.survivors_statement(shares_hash, members)
    else:
        tag, fields = transcript.abort_statement(context, sender, item["step"], item["code"], item["accused"])
    item["signature"] = signing_key(sender).sign(tag, *fields)


def ring_vector(value: Any, base: BaseRound) -> Any:
    """A list of ring elements as the array that a session takes."""
    return value if isinstance(value, np.ndarray) else np.array(value, dtype=base.federation.policy.dtype)


def pick(outcome: Any, path: str | None) -> Any:
    """The part of an outcome that a case asks for."""
    whole = {"outcome": plain(outcome)}
    container, place = locate(whole, f"outcome{path}" if path and path.startswith("[") else f"outcome.{path or ''}")
    return container[place]


def server_call(method: str, given: dict[str, Any]) -> Any:
    """Hand an altered message to the server at the start of a phase, after honest ones from the sites heard."""
    base = BASES[given["base"]]()
    phase, kind = RECEIVED[method]
    server, records = deepcopy(base.servers[given.get("phase", phase)]), base.federation.records[phase]
    for site in given.get("heard", []):
        getattr(server, method)(build_for(kind, plain(records[site]), {}, base))
    message = build_for(kind, plain(records[given["site"]]), given, base)
    state = server.state
    try:
        getattr(server, method)(message)
    finally:
        assert server.state is state, "a message changed the phase"
    return {"still expected": list(server.expected)}


def server_close(method: str, given: dict[str, Any]) -> Any:
    """Let the server close a phase after the honest messages of the sites heard, one of them altered."""
    base = BASES[given["base"]]()
    phase, kind = RECEIVED[CLOSED[method]]
    server, records = deepcopy(base.servers[given.get("phase", phase)]), base.federation.records[phase]
    for site in sorted(records)[: given.get("heard")]:
        changes = given if site == given.get("site") else {}
        getattr(server, CLOSED[method])(build_for(kind, plain(records[site]), changes, base))
    try:
        outcome = getattr(server, method)()
    except errors.AggregationAborted:
        assert server.state is ServerState.ABORTED, "a phase that failed could be tried again"
        raise
    return pick(outcome, given.get("get"))


def build_for(kind: str, sent: dict[str, Any], given: dict[str, Any], base: BaseRound) -> Any:
    """A message with a case's edits."""
    altered = alter(sent, given.get("edits", []), base)
    for field in ("vector", "total"):
        if field in altered:
            altered[field] = ring_vector(altered[field], base)
    return build(kind, altered)


def honest_message(base: BaseRound, method: str, site: int) -> dict[str, Any]:
    """What the server sent a site before a call."""
    federation = base.federation
    return plain(
        {
            "receive_peer_keys": federation.__dict__.get("peer_keys"),
            "reveal_nonce": federation.__dict__.get("peer_keys"),
            "receive_peer_nonces": federation.__dict__.get("peer_nonces"),
            "receive_peer_shares": federation.peer_shares.get(site),
            "receive_survivors": federation.survivors,
            "receive_confirmations": federation.confirmations,
            "receive_result": federation.result.message,
        }[method]
    )


def client_before(base: BaseRound, site: int, method: str) -> ClientSession:
    """A site of a seeded round, driven up to a call."""
    federation = base.federation
    client, left_out = federation.client(site), "receive_peer_keys"
    if federation.context.graph == "complete":
        left_out = "reveal_nonce, receive_peer_nonces"
    for earlier, kind in ANSWERED.items():
        if earlier == method:
            break
        if earlier == "masked_input":
            client.masked_input(federation.inputs[site], Releases())
        elif kind is None:
            client.advertise_keys()
        elif earlier not in left_out:
            getattr(client, earlier)(build_for(kind, honest_message(base, earlier, site), {}, base))
    return client


def client_call(method: str, given: dict[str, Any]) -> Any:
    """Hand an altered message to a site that has reached the call, or to one that stands before another call."""
    base, site = BASES[given["base"]](), given["site"]
    client = client_before(base, site, given.get("before", method))
    arguments: tuple[Any, ...] = ()
    if method == "masked_input":
        releases = Releases()
        releases.marked += [(run_id, number) for run_id, number in given.get("released", [])]
        vector = base.federation.inputs[site] if "vector" not in given else np.array(given["vector"])
        arguments = (vector.astype(given.get("type", base.federation.policy.dtype)), releases)
    elif method == "abort":
        arguments = (given["code"],)
    elif kind := ANSWERED[method]:
        arguments = (build_for(kind, honest_message(base, method, site), given, base),)
    state = client.state
    try:
        outcome = getattr(client, method)(*arguments)
    except errors.LocalProtocolError:
        assert client.state is state, "a caller's mistake changed the session"
        raise
    except errors.RemoteProtocolError:
        assert client.state is ClientState.DEAD, "a failed check left the session alive"
        raise
    outcome = outcome if outcome is not None else {"neighbours": sorted(client.neighbours)}
    return pick(outcome, given.get("get"))


def new_abort(given: dict[str, Any]) -> Any:
    """Hand the server an abort that its sender signed, with edits."""
    base = BASES[given["base"]]()
    server = deepcopy(base.servers[given.get("phase", "shares")])
    notice = plain(base.federation.client(given["site"]).abort(messages.AbortCode.REFUSED))
    server.receive_abort(build("Abort", alter(notice, given.get("edits", []), base)))
    return pick({"gone": [abort.sender for abort in server.aborts]}, given.get("get"))


# --- single calls ---

CONTEXT_FIELDS = tuple(field.name for field in dataclasses.fields(RoundContext))


def unhex(kind: type, name: str, value: Any) -> Any:
    """A JSON value as the type that a dataclass's field has."""
    annotation = {field.name: str(field.type) for field in dataclasses.fields(kind)}[name]
    if annotation == "bytes":
        return bytes.fromhex(value)
    return tuple(value) if annotation.startswith("tuple") else value


def made(kind: type, given: dict[str, Any]) -> Any:
    """A dataclass from JSON."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: unhex(kind, name, value) for name, value in given.items() if name in names})


def ask(thing: Any, question: list[Any] | str) -> Any:
    """A property, or a method with its arguments."""
    name, *arguments = [question] if isinstance(question, str) else question
    value = getattr(thing, name)
    return plain(value(*arguments) if arguments else value)


def new_message(given: dict[str, Any]) -> Any:
    """Build one message, every field of which has the right length but for those the case sets."""
    kind, changes = given["class"], given["set"]
    sizes = {"share": 33, "ciphertext": 82, "signature": 64}
    fields: dict[str, Any] = {"kind": 1, "survivors": (11,), "step": "publish", "code": "refused", "accused": 0}
    fields |= {"shares": (), "commitments": (), "adverts": (), "nonces": (), "inputs": (), "confirmations": ()}
    fields |= {"total": np.zeros(1), "vector": np.zeros(1)}
    fields |= dict.fromkeys(("sender", "recipient", "owner"), 11)
    made_fields = {}
    for field in dataclasses.fields(getattr(messages, kind)):
        value = fields.get(field.name, bytes(sizes.get(field.name, 32)))
        if field.name in changes:
            change = changes[field.name]
            value = bytes.fromhex(change) if isinstance(value, bytes) else change
        if isinstance(value, dict):
            value = (None,) * value["items"]
        elif field.name == "commitments":
            value = tuple((site, bytes.fromhex(commitment)) for site, commitment in value)
        made_fields[field.name] = value
    return plain(getattr(messages, kind)(**made_fields))["sender"]


def new_roster(given: dict[str, Any]) -> Any:
    entries = tuple(made(RosterEntry, given["entry"] | change) for change in given["entries"])
    return ask(Roster(given["version"], entries), given["ask"])


def announced(given: dict[str, Any]) -> Any:
    """Let a site judge an announcement: the seeded round's, with changes on either side."""
    federation = BASES[given["base"]]().federation
    changes = {name: unhex(RoundContext, name, value) for name, value in given.get("context", {}).items()}
    context = dataclasses.replace(federation.context, **changes)
    own = {
        "site_id": 11,
        "run_id": "test-run",
        "last_round": 100,
        "last_round_released": 6,
        "last_attempt_seen": (7, 1),
    }
    own |= {"policy_hash": federation.context.policy_hash, "model_hash": federation.context.model_hash}
    for name, value in given.get("own", {}).items():
        own[name] = bytes.fromhex(value) if name.endswith("_hash") else tuple(value) if name[-1] == "n" else value
    roster = federation.roster
    if "roster" in given:
        entries = [dataclasses.replace(e, **given["roster"].get(str(e.site_id), {})) for e in roster.entries]
        roster = Roster(roster.version, tuple(entries))
        context = dataclasses.replace(context, roster_hash=roster.hash)
    policy = dataclasses.replace(federation.policy, **given.get("policy", {}))
    validate_context(context, policy, roster, **own)
    return {"joined": True}


def new_session(given: dict[str, Any]) -> Any:
    """Start a session with something about it changed."""
    federation = BASES[given["base"]]().federation
    changes = {name: unhex(RoundContext, name, value) for name, value in given.get("context", {}).items()}
    context = dataclasses.replace(federation.context, **changes)
    if given["side"] == "server":
        server = ServerSession(policy=federation.policy, roster=federation.roster, context=context)
        return {"state": server.state.value, "expected": list(server.expected)}
    changed: dict[str, Any] = {"context": context}
    if "signing_key" in given:
        changed["signing_key"] = SigningKey.from_bytes(bytes.fromhex(given["signing_key"]))
    if "ledger_head" in given:
        changed["ledger_head"] = bytes.fromhex(given["ledger_head"])
    return {"state": federation.client(given["site"], **changed).state.value}


def masked(given: dict[str, Any]) -> Any:
    vector = np.array(given["vector"], dtype=given["type"])
    jobs = [(bytes.fromhex(seed), subtract) for seed, subtract in given["jobs"]]
    add_masks(vector, jobs, cipher=given["cipher"])
    return vector.tolist()


def released(given: dict[str, Any]) -> Any:
    """Mark rounds in a file of a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "releases"
        path.write_bytes(given.get("file", "").encode())
        registers = [FileReleases(path)]
        try:
            for run_id, number in given.get("marks", []):
                registers[0].mark(run_id, number)
            if given.get("opened") == "twice":
                registers.append(FileReleases(path))
            return {"last": registers[0].last_round(given["run"]), "file": path.read_text()}
        finally:
            for register in registers:
                register.close()


def encoded(given: dict[str, Any]) -> Any:
    values = np.array([float(value) for value in given["values"]], dtype=given.get("type", "f8"))
    return encode(made(SecureSumPolicy, given["policy"]), values, weight=given.get("weight")).tolist()


def checked(given: dict[str, Any]) -> Any:
    policy = made(SecureSumPolicy, given["policy"])
    check_encoded(policy, np.array(given["vector"], dtype=given.get("type", policy.dtype)))
    return True


def decoded(given: dict[str, Any]) -> Any:
    policy = made(SecureSumPolicy, given["policy"])
    total = np.array(given["total"], dtype=given.get("type", policy.dtype))
    return plain(decode_sum(policy, total, given["n"]))


def shares_of(given: dict[str, Any]) -> dict[int, bytes]:
    return {int(index): bytes.fromhex(share) for index, share in given["shares"].items()}


def verified(given: dict[str, Any]) -> Any:
    def opens(candidate: bytes) -> bool:
        return hashlib.sha256(candidate).hexdigest() == given["sha256"]

    return recover_verified(shares_of(given), given["threshold"], opens, max_attempts=given["max_attempts"])


def raw(given: dict[str, Any], *names: str) -> list[bytes]:
    """Byte fields by name."""
    return [bytes.fromhex(given[name]) for name in names]


def sealed(given: dict[str, Any]) -> Any:
    channel, keys_hash, mask_key_share, self_mask_share = raw(
        given, "channel_secret", "keys_hash", "mask_key_share", "self_mask_share"
    )
    ends = {"sender": given["sender"], "recipient": given["recipient"]}
    return seal_shares(channel, keys_hash, **ends, mask_key_share=mask_key_share, self_mask_share=self_mask_share)


def opened(given: dict[str, Any]) -> Any:
    channel, keys_hash, ciphertext = raw(given, "channel_secret", "keys_hash", "ciphertext")
    return open_shares(channel, keys_hash, sender=given["sender"], recipient=given["recipient"], ciphertext=ciphertext)


def tensors(given: dict[str, Any]) -> bytes:
    return tensors_digest([(name, np.array(values, dtype=dtype)) for name, dtype, values in given["tensors"]])


def digested(given: dict[str, Any]) -> bytes:
    """The digest of some fields, or of one field of a length that no memory needs to hold."""
    if "field_bytes" in given:
        return digest(given["tag"], np.broadcast_to(np.zeros(1, dtype=np.uint8), given["field_bytes"]).data)
    return digest(given["tag"], *map(bytes.fromhex, given["fields"]))


def neighbours(given: dict[str, Any]) -> list[int]:
    parameters = GraphParameters(given["sparse"], given["degree"], 0, 0)
    graph = Graph(parameters, range(1, given["members"] + 1), bytes.fromhex(given["seed"]))
    return sorted(graph.neighbours(given["site"]))


OPERATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "encoding.u32": lambda given: u32(given["value"]),
    "encoding.u64": lambda given: u64(given["value"]),
    "encoding.canonical": lambda given: canonical(given["tag"], *map(bytes.fromhex, given["fields"])),
    "encoding.digest": digested,
    "encoding.vector_digest": lambda given: vector_digest(long_vector(given["type"], given["size"])),
    "encoding.tensors_digest": tensors,
    "keys.public": lambda given: AgreementKey(*raw(given, "private")).public,
    "keys.exchange": lambda given: AgreementKey(*raw(given, "private")).exchange(*raw(given, "public")),
    "keys.derive": lambda given: derive(*raw(given, "secret"), salt=raw(given, "salt")[0], info=raw(given, "info")[0]),
    "keys.sign": lambda given: SigningKey.from_bytes(*raw(given, "private")).sign(given["tag"], *raw(given, "field")),
    "keys.verify": lambda given: (
        verify(*raw(given, "verify_key", "signature"), given["tag"], *raw(given, "field")) or True
    ),
    "signed.sign_document": lambda given: sign_document(
        SigningKey.from_bytes(*raw(given, "private")), given["tag"], given["document"].encode()
    ),
    "signed.verify_document": lambda given: (
        verify_document(
            bytes.fromhex(given["root_key"]),
            given["tag"],
            given["document"].encode(),
            bytes.fromhex(given["signature"]),
            name=given["name"],
        )
        or True
    ),
    "masks.add_masks": masked,
    "shamir.split": lambda given: split(
        bytes.fromhex(given["secret"]), given["threshold"], given["indices"], seeded_bytes(given["randomness"])
    ),
    "shamir.recover": lambda given: recover(shares_of(given), given["threshold"]),
    "shamir.recover_verified": verified,
    "sharing.seal_shares": sealed,
    "sharing.open_shares": opened,
    "sharing.pair_mask_seed": lambda given: pair_mask_seed(*raw(given, "secret", "shares_hash"), *given["sites"]),
    "sharing.self_mask_seed": lambda given: self_mask_seed(*raw(given, "secret", "shares_hash"), given["site"]),
    "graph.shuffled": lambda given: shuffled(list(range(1, given["members"] + 1)), *raw(given, "seed")),
    "graph.neighbours": neighbours,
    "graph.sparse_parameters": lambda given: plain(sparse_parameters(given["n"], given["colluders"], given["dropped"])),
    "policy.new": lambda given: ask(made(SecureSumPolicy, given), given["ask"]),
    "policy.from_range": lambda given: ask(
        SecureSumPolicy.from_range(**{name: value for name, value in given.items() if name != "ask"}), given["ask"]
    ),
    "roster.new": new_roster,
    "context.new": lambda given: made(RoundContext, given).hash,
    "context.validate": announced,
    "session.new": new_session,
    "message.new": new_message,
    "ring.encode": encoded,
    "ring.check_encoded": checked,
    "ring.decode_sum": decoded,
    "release.file": released,
    "server.receive_abort": new_abort,
}
for _method in (*RECEIVED, *CLOSED):
    _call = server_close if _method in CLOSED else server_call
    OPERATIONS[f"server.{_method}"] = partial(_call, _method)
for _method in (*ANSWERED, "abort"):
    OPERATIONS[f"client.{_method}"] = partial(client_call, _method)
