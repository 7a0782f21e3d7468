"""Keys: signatures cover tag and fields, and nothing that is printed shows a key."""

import pytest

from secure_agg.errors import KeyAgreementError, SignatureError
from secure_agg.keys import AgreementKey, SigningKey, derive, verify

KEY = SigningKey.from_bytes(bytes(range(32)))
SIGNATURE = KEY.sign("tag", b"one", b"two")


def test_a_signature_verifies_over_what_was_signed():
    verify(KEY.verify_key, SIGNATURE, "tag", b"one", b"two")


@pytest.mark.parametrize(
    ("verify_key", "signature", "tag", "fields"),
    [
        (KEY.verify_key, SIGNATURE, "other", (b"one", b"two")),
        (KEY.verify_key, SIGNATURE, "tag", (b"onet", b"wo")),
        (KEY.verify_key, SIGNATURE, "tag", (b"two", b"one")),
        (KEY.verify_key, SIGNATURE, "tag", (b"one",)),
        (KEY.verify_key, SIGNATURE[:-1], "tag", (b"one", b"two")),
        (KEY.verify_key, bytes(64), "tag", (b"one", b"two")),
        (SigningKey.from_bytes(bytes(range(1, 33))).verify_key, SIGNATURE, "tag", (b"one", b"two")),
        (bytes(31), SIGNATURE, "tag", (b"one", b"two")),
    ],
)
def test_a_signature_over_anything_else_is_refused(verify_key, signature, tag, fields):
    with pytest.raises(SignatureError):
        verify(verify_key, signature, tag, *fields)


def test_a_signature_with_a_larger_scalar_is_refused():
    order = 2**252 + 27742317777372353535851937790883648493
    larger = (int.from_bytes(SIGNATURE[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(SignatureError):
        verify(KEY.verify_key, SIGNATURE[:32] + larger, "tag", b"one", b"two")


def test_a_key_comes_back_from_its_bytes():
    assert SigningKey.from_bytes(KEY.to_bytes()).verify_key == KEY.verify_key
    raw = bytes(range(1, 33))
    assert AgreementKey(raw).to_bytes() == raw  # unclamped: what is shared is what is recovered


def test_new_keys_differ():
    assert AgreementKey.generate().public != AgreementKey.generate().public
    assert SigningKey.generate().verify_key != SigningKey.generate().verify_key


def test_a_private_key_of_the_wrong_length_is_refused():
    with pytest.raises(KeyAgreementError):
        AgreementKey(bytes(31))


def test_the_representation_of_a_key_shows_nothing_of_it():
    assert repr(KEY) == "SigningKey(<private>)"
    assert repr(AgreementKey(bytes(range(32)))) == "AgreementKey(<private>)"


def test_derived_keys_depend_on_every_argument():
    keys = {derive(b"s", salt=b"a", info=b"b"), derive(b"t", salt=b"a", info=b"b")}
    keys |= {derive(b"s", salt=b"c", info=b"b"), derive(b"s", salt=b"a", info=b"c")}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
