"""Whatever becomes of the files of a ledger is noticed, or has changed nothing of what it says."""

import hashlib
import json
import math
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import Ledger, LedgerEntry, LedgerError, LedgerLocked, LedgerWriteFailed, Mode, PrivacyParameters
from privacy.chain import EntryKind, encode_body, link, parse, verify
from privacy.errors import LedgerCorrupt
from privacy.mechanism import NoiseShares
from privacy.storage import LedgerStore, marker_path
from tests.privacy.conftest import PARAMS, POLICY, UNSAFE

QUIET = replace(PARAMS, noise_multiplier=8.0, steps_per_round=1)
SHARES = NoiseShares(dimension=1000, shares=4, grid=2.0**20, clamp=2**40)
OF_RECORDS = replace(PARAMS, mode=Mode.RECORD_DISTRIBUTED, steps_per_round=1, noise_shares=SHARES)
OF_SITES = replace(OF_RECORDS, mode=Mode.SILO_DISTRIBUTED, unit="site", noise_multiplier=30.0)
ROUNDS = 8


class Site:
    """A ledger with eight charges, and everything that was copied from it on the way."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "l.db"
        self.copies: list[dict[Path, bytes]] = []
        Ledger.create(self.path, dataset_id="d", delta=1e-5, epsilon_max=8.0).close()
        for number in range(1, ROUNDS + 1):
            with Ledger.open(self.path) as ledger:
                ledger.reserve("run", number, QUIET, POLICY)
                ledger.mark_attempt("run", number, 1)
            self.copies.append({file: file.read_bytes() for file in (self.path, marker_path(self.path))})
        with Ledger.open(self.path, read_only=True) as ledger:
            self.entries, self.head = ledger.entries(), ledger.head

    def restore(self) -> None:
        for file in self.path.parent.iterdir():
            file.unlink()
        for file, content in self.copies[-1].items():
            file.write_bytes(content)

    def notices(self) -> bool:
        """Whether an opening is refused; one that is not must show every charge as it was."""
        try:
            with Ledger.open(self.path, expected_head=self.head) as ledger:
                assert ledger.entries() == self.entries, "what was spent changed, and nobody noticed"
        except LedgerError:
            return True
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


Damage = Callable[[Site, random.Random], None]


def _flip_bits(site: Site, draws: random.Random) -> None:
    file = draws.choice([site.path, marker_path(site.path)])
    content = bytearray(file.read_bytes())
    for _ in range(draws.randint(1, 4)):
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    file.write_bytes(content)


def _zero_a_page(site: Site, draws: random.Random) -> None:
    content = bytearray(site.path.read_bytes())
    start = draws.randrange(len(content) // 512) * 512
    content[start : start + 512] = bytes(512)
    site.path.write_bytes(content)


def _truncate(site: Site, draws: random.Random) -> None:
    file = draws.choice([site.path, marker_path(site.path)])
    content = file.read_bytes()
    file.write_bytes(content[: draws.randrange(len(content))])


def _delete(site: Site, draws: random.Random) -> None:
    draws.choice([site.path, marker_path(site.path)]).unlink()


def _rewrite(site: Site, *statements: str) -> None:
    connection = sqlite3.connect(site.path)
    connection.executescript("DROP TRIGGER entries_are_never_changed; DROP TRIGGER entries_are_never_removed")
    connection.executescript(";".join(statements))
    connection.close()


def _remove_an_entry(site: Site, draws: random.Random) -> None:
    _rewrite(site, f"DELETE FROM entries WHERE seq = {draws.randrange(len(site.entries))}")


def _cut_the_end(site: Site, draws: random.Random) -> None:
    _rewrite(site, f"DELETE FROM entries WHERE seq >= {draws.randrange(len(site.entries))}")


def _swap_two_entries(site: Site, draws: random.Random) -> None:
    one, other = draws.sample(range(len(site.entries)), 2)
    moves = [(one, -1), (other, one), (-1, other)]
    _rewrite(site, *(f"UPDATE entries SET seq = {new} WHERE seq = {old}" for old, new in moves))


def _change_a_charge(site: Site, draws: random.Random) -> None:
    charge = draws.choice([entry for entry in site.entries if entry.kind is EntryKind.CHARGE])
    body = encode_body(dict(charge.body) | {"noise_multiplier": draws.uniform(9, 90)}).hex()
    _rewrite(site, f"UPDATE entries SET body = x'{body}' WHERE seq = {charge.seq}")


def _forge_the_rest(site: Site, draws: random.Random) -> None:
    """A chain that holds, with louder noise from some charge on."""
    start = draws.choice([entry.seq for entry in site.entries if entry.kind is EntryKind.CHARGE])
    previous, statements = site.entries[start].previous, []
    for entry in site.entries[start:]:
        louder = {"noise_multiplier": 90.0} if entry.kind is EntryKind.CHARGE else {}
        forged = link(entry.seq, entry.kind, dict(entry.body) | louder, previous)
        previous = forged.hash
        statements.append(
            f"UPDATE entries SET body = x'{encode_body(forged.body).hex()}', previous = x'{forged.previous.hex()}', "
            f"hash = x'{forged.hash.hex()}' WHERE seq = {entry.seq}"
        )
    _rewrite(site, *statements)


def _put_an_older_copy_back(site: Site, draws: random.Random) -> None:
    older = draws.choice(site.copies[:-1])
    for file in draws.choice([list(older), [site.path]]):
        file.write_bytes(older[file])


NEVER_HARMLESS: list[Damage] = [
    _truncate,
    _delete,
    _remove_an_entry,
    _cut_the_end,
    _swap_two_entries,
    _change_a_charge,
    _forge_the_rest,
    _put_an_older_copy_back,
]
SOMETIMES_HARMLESS: list[Damage] = [_flip_bits, _zero_a_page]
"""A byte that holds nothing, or another spelling of the same marker."""


def check_damage(site: Site, damages: list[Damage], seeds: range) -> int:
    """Assert that all damage is noticed, or is without effect where that may be; how much was noticed."""
    noticed = 0
    for seed in seeds:
        site.restore()
        draws = random.Random(seed)
        damage = damages[seed % len(damages)]
        damage(site, draws)
        found = site.notices()
        assert found or damage in SOMETIMES_HARMLESS, f"{damage.__name__} with seed {seed} went unnoticed"
        noticed += found
    return noticed


def test_five_hundred_corruptions_truncations_deletions_reorderings_and_old_copies_are_all_noticed(site: Site) -> None:
    assert check_damage(site, NEVER_HARMLESS, range(504)) == 504  # 63 of each kind


def test_three_hundred_random_bits_and_pages_are_noticed_or_without_effect(site: Site) -> None:
    assert check_damage(site, SOMETIMES_HARMLESS, range(300)) > 75


def test_control_without_the_chain_and_the_markers_much_of_it_goes_unnoticed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(seq: int, kind: str, body: bytes, previous: bytes, digest: bytes) -> LedgerEntry:
        return LedgerEntry(seq, EntryKind(kind), json.loads(body), previous, digest)

    monkeypatch.setattr("privacy.storage.parse", trusting)
    monkeypatch.setattr("privacy.ledger.verify", lambda entries: None)
    monkeypatch.setattr("privacy.ledger._refuse_rollback", lambda *_: None)
    with pytest.raises(AssertionError, match="nobody noticed"):
        check_damage(site, [_change_a_charge], range(8))


# Charges of every mode


@pytest.mark.parametrize(
    ("params", "unit"),
    [
        (PARAMS, "record"),
        (replace(PARAMS, unit="patient"), "patient"),
        (OF_RECORDS, "record"),
        (replace(OF_RECORDS, unit="patient"), "patient"),
        (OF_SITES, "site"),
        (replace(OF_SITES, steps_per_round=30, sample_rate=0.2), "site"),
    ],
)
def test_a_charge_of_every_mode_is_read_back_as_it_was_made(
    tmp_path: Path, params: PrivacyParameters, unit: str
) -> None:
    with Ledger.create(tmp_path / "l.db", dataset_id="d", delta=1e-5, epsilon_max=50.0, unit=unit) as ledger:
        for number in (1, 2):
            token = ledger.reserve("run", number, params, POLICY)
        before = ledger.spent()
        assert before.epsilon == token.epsilon_after == ledger.entries()[-1].body["epsilon_after"]
    with Ledger.open(tmp_path / "l.db") as again:
        assert again.spent() == before
        assert [entry.mechanism for entry in again.entries()[1:]] == [params.mechanism] * 2
        assert (before.steps, before.unit) == (2 * params.steps_per_round, unit)
        assert again.entries()[-1].body["accountant"] == before.accountant


def test_a_charge_without_privacy_is_read_back_as_one(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "l.db", dataset_id="d", delta=1e-5, epsilon_max=float("inf"), unsafe=True) as ledger:
        ledger.reserve("run", 1, UNSAFE, POLICY)
    with Ledger.open(tmp_path / "l.db") as again:
        assert again.entries()[-1].is_unsafe
        assert again.spent().epsilon == float("inf")


def test_modes_that_follow_each_other_on_one_dataset_are_charged_by_the_filter(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "l.db", dataset_id="d", delta=1e-5, epsilon_max=50.0) as ledger:
        alone = ledger.reserve("run", 1, PARAMS, POLICY).epsilon_after
        assert "PLD" in ledger.spent().accountant
        both = ledger.reserve("run", 2, OF_RECORDS, POLICY).epsilon_after
        assert "filter" in ledger.spent().accountant
        assert alone < both == ledger.spent().epsilon


# A chain that hashes but says nothing sensible

FROZEN = "2eb9c952f9c666a2d42a235f6a3d0b4ba6ee0387fb41a86b6dab6624d0a2a639"
_CREATED = {"dataset_id": "d", "delta": 1e-5, "epsilon_max": 8.0, "unit": "record"}


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (EntryKind.CREATED, _CREATED | {"epsilon_max": 0.0}, "no budget"),
        (EntryKind.CREATED, _CREATED | {"delta": 0.0}, "no budget"),
        (EntryKind.CREATED, _CREATED | {"dataset_id": ""}, "no dataset or unit"),
        (EntryKind.CREATED, _CREATED | {"unit": ""}, "no dataset or unit"),
        (EntryKind.ATTEMPT, {"run_id": "", "round": 1, "attempt": 1}, "no run or round"),
        (EntryKind.ATTEMPT, {"run_id": "r", "round": 0, "attempt": 1}, "no run or round"),
        (EntryKind.ATTEMPT, {"run_id": "r", "round": 1, "attempt": 0}, "attempts count from 1"),
        (EntryKind.CHARGE, {"run_id": "r", "round": 1, "mode": "other"}, "other"),
        (EntryKind.CHARGE, {"run_id": "r", "round": 1, "mode": "record-distributed", "noise_multiplier": 2.0}, "rate"),
    ],
)
def test_an_entry_that_hashes_but_makes_no_sense_is_refused(
    kind: EntryKind, body: dict[str, str | int | float], message: str
) -> None:
    entry = link(0, kind, body, bytes(32))
    with pytest.raises(LedgerCorrupt, match=message):
        parse(0, kind.value, encode_body(body), bytes(32), entry.hash)


def test_a_charge_without_any_mechanism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LedgerEntry, "mechanism", None)
    body: dict[str, str | int | float] = {"run_id": "r", "round": 1, "mode": "record-local"}
    entry = link(1, EntryKind.CHARGE, body, bytes(32))
    with pytest.raises(LedgerCorrupt, match="no mechanism"):
        parse(1, "charge", encode_body(body), bytes(32), entry.hash)


def test_an_entry_at_another_position_than_it_says_is_refused() -> None:
    first = link(0, EntryKind.CREATED, _CREATED, bytes(32))
    mark: dict[str, str | int | float] = {"run_id": "r", "round": 1, "attempt": 1}
    verify([first, link(1, EntryKind.ATTEMPT, mark, first.hash)])
    with pytest.raises(LedgerCorrupt, match="the chain breaks at entry 1"):
        verify([first, link(2, EntryKind.ATTEMPT, mark, first.hash)])


def test_the_hash_of_an_entry_is_that_of_format_version_1() -> None:
    """As docs/privacy.md states it. A program that computes another one cannot read the ledgers of this one."""
    body = b'{"attempt":2,"round":7,"run_id":"r","time":"t"}'
    fields = (b"fedmvp/ledger-entry/v1", bytes([1] * 32), (5).to_bytes(8, "big"), b"attempt", body)
    stated = hashlib.sha256(b"".join(len(field).to_bytes(4, "big") + field for field in fields)).hexdigest()
    entry = link(5, EntryKind.ATTEMPT, {"run_id": "r", "round": 7, "attempt": 2, "time": "t"}, bytes([1] * 32))
    assert encode_body(entry.body) == body
    assert encode_body({"b": math.inf, "a": 0.1}) == b'{"a":0.1,"b":"inf"}'
    assert entry.hash.hex() == stated == FROZEN


def test_a_round_released_twice_in_one_chain_is_refused() -> None:
    first = link(0, EntryKind.CREATED, _CREATED, bytes(32))
    charge: dict[str, str | int | float] = {"run_id": "r", "round": 1, "mode": "record-local"}
    second = link(1, EntryKind.CHARGE, charge, first.hash)
    verify([first, second])
    with pytest.raises(LedgerCorrupt, match="a second time"):
        verify([first, second, link(2, EntryKind.CHARGE, charge, second.hash)])


# Files that something else is in the way of


def test_a_marker_that_cannot_be_caught_up_with_when_opening_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.restore()
    marker_path(site.path).write_bytes(site.copies[3][marker_path(site.path)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("privacy.storage.Marker.write", full)
        with pytest.raises(LedgerWriteFailed, match="No space left"):
            Ledger.open(site.path)
    assert not site.notices()


def test_a_database_that_another_program_holds_is_reported_as_in_use(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.restore()
    holder = sqlite3.connect(site.path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **named: connect(*args, **(named | {"timeout": 0.01})))
    try:
        with pytest.raises(LedgerLocked, match="in use by another process"):
            Ledger.open(site.path)
    finally:
        holder.close()


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "l.db")
    connection.execute("CREATE TABLE entries (seq)")
    connection.close()
    with pytest.raises(LedgerCorrupt, match="not a privacy ledger"):
        Ledger.open(tmp_path / "l.db")


def test_a_file_that_fails_its_integrity_check_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.restore()
    store = LedgerStore.open(site.path, read_only=True)
    try:
        connection = store._connection
        connection.execute("PRAGMA writable_schema=ON")

        class Damaged:
            def execute(self, statement: str) -> sqlite3.Cursor:
                answer = "SELECT 'row 3 missing from index'" if "integrity_check" in statement else statement
                return connection.execute(answer)

        monkeypatch.setattr(store, "_connection", Damaged())
        with pytest.raises(LedgerCorrupt, match="is damaged: row 3 missing"):
            store.read()
    finally:
        connection.close()


def test_copies_of_a_working_ledger_open(site: Site, tmp_path: Path) -> None:
    """What the checks above start from is in order."""
    site.restore()
    assert not site.notices()
    shutil.copytree(site.path.parent, tmp_path / "moved")
    with Ledger.open(tmp_path / "moved" / "l.db", expected_head=site.head) as ledger:
        assert ledger.entries() == site.entries
