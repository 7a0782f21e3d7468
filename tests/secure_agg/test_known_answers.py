"""Published answers for every primitive, through the code that wraps it here."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secure_agg import keys, keystream, sharing
from secure_agg.encoding import canonical
from secure_agg.errors import KeyAgreementError, ShareError, SignatureError
from secure_agg.keys import AgreementKey, SigningKey, derive, verify
from secure_agg.masks import add_masks

unhex = bytes.fromhex


def test_x25519_gives_the_keys_and_secret_of_rfc_7748_section_6_1():
    alice = AgreementKey(unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = AgreementKey(unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    secret = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.public == unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public == unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert alice.exchange(bob.public) == bob.exchange(alice.public) == secret


@pytest.mark.parametrize(
    ("scalar", "point", "answer"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519_gives_the_answers_of_rfc_7748_section_5_2(scalar, point, answer):
    assert AgreementKey(unhex(scalar)).exchange(unhex(point)) == unhex(answer)


def test_x25519_gives_the_iterated_answers_of_rfc_7748_section_5_2():
    scalar = point = unhex("09" + "00" * 31)
    for count in range(1, 1001):
        scalar, point = AgreementKey(scalar).exchange(point), scalar
        if count == 1:
            assert scalar == unhex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079")
    assert scalar == unhex("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51")


@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_a_low_order_point_is_refused(point):
    with pytest.raises(KeyAgreementError):
        AgreementKey.generate().exchange(unhex(point))


def test_a_public_key_of_the_wrong_length_is_refused():
    with pytest.raises(KeyAgreementError):
        AgreementKey.generate().exchange(bytes(31))


@pytest.mark.parametrize(
    ("private", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
def test_ed25519_gives_the_answers_of_rfc_8032_section_7_1(monkeypatch, private, public, message, signature):
    monkeypatch.setattr(keys, "canonical", lambda _tag, *fields: b"".join(fields))
    key = SigningKey.from_bytes(unhex(private))
    assert key.verify_key == unhex(public)
    assert key.sign("tag", unhex(message)) == unhex(signature)
    verify(key.verify_key, unhex(signature), "tag", unhex(message))
    with pytest.raises(SignatureError):
        verify(key.verify_key, unhex(signature), "tag", unhex(message) + b"\0")


@pytest.mark.parametrize(
    ("secret", "salt", "info", "okm"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
        ),
        ("0b" * 22, "", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"),
    ],
)
def test_hkdf_gives_the_first_32_bytes_of_rfc_5869(secret, salt, info, okm):
    assert derive(unhex(secret), salt=unhex(salt), info=unhex(info)) == unhex(okm)


def test_sealing_and_opening_give_the_answer_of_rfc_8439_section_2_8_2(monkeypatch):
    key, associated = bytes(range(0x80, 0xA0)), unhex("50515253c0c1c2c3c4c5c6c7")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    monkeypatch.setattr(sharing, "_NONCE", unhex("070000004041424344454647"))
    monkeypatch.setattr(sharing, "_channel", lambda *_: (ChaCha20Poly1305(key), associated))
    monkeypatch.setattr(sharing, "SHARE_BYTES", 57)
    monkeypatch.setattr(sharing, "parse_share", lambda _share: 0)
    shares = {"mask_key_share": plain[:57], "self_mask_share": plain[57:]}
    sealed = sharing.seal_shares(b"", b"", sender=1, recipient=2, **shares)
    assert sealed == unhex(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"
    )
    assert sharing.open_shares(b"", b"", sender=1, recipient=2, ciphertext=sealed) == (plain[:57], plain[57:])
    with pytest.raises(ShareError):
        sharing.open_shares(b"", b"", sender=1, recipient=2, ciphertext=sealed[:-1] + b"\x90")


SEALED = sharing.seal_shares(
    b"c" * 32, b"t" * 32, sender=1, recipient=2, mask_key_share=bytes(33), self_mask_share=b"\0" + b"s" * 32
)


def test_a_seal_is_the_documented_key_zero_nonce_and_associated_data():
    ends = (b"\0\0\0\1", b"\0\0\0\2")
    key = derive(b"c" * 32, salt=b"t" * 32, info=canonical("fedmvp/share-key/v1", *ends))
    associated = canonical("fedmvp/sealed-share/v1", b"t" * 32, *ends)
    assert ChaCha20Poly1305(key).decrypt(bytes(12), SEALED, associated) == bytes(34) + b"s" * 32


@pytest.mark.parametrize(
    "changed",
    [
        {"channel_secret": b"d" * 32},
        {"keys_hash": b"u" * 32},
        {"sender": 2, "recipient": 1},
        {"recipient": 3},
        {"ciphertext": SEALED[:-1]},
        {"ciphertext": bytes([SEALED[0] ^ 1]) + SEALED[1:]},
    ],
)
def test_a_seal_opens_only_for_its_round_direction_and_content(changed):
    genuine = {
        "channel_secret": b"c" * 32,
        "keys_hash": b"t" * 32,
        "sender": 1,
        "recipient": 2,
        "ciphertext": SEALED,
    }
    assert sharing.open_shares(**genuine) == (bytes(33), b"\0" + b"s" * 32)
    with pytest.raises(ShareError, match="does not open"):
        sharing.open_shares(**(genuine | changed))


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ((bytes(33), bytes(32)), "length"),
        ((b"\xff" * 33, bytes(33)), "field"),
        ((bytes(33), b"\xff" * 33), "field"),
    ],
)
def test_a_seal_over_something_that_is_no_pair_of_shares_is_refused(shares, reason):
    ends = {"sender": 1, "recipient": 2}
    sealed = sharing.seal_shares(b"c", b"t", **ends, mask_key_share=shares[0], self_mask_share=shares[1])
    with pytest.raises(ShareError, match=reason):
        sharing.open_shares(b"c", b"t", **ends, ciphertext=sealed)


def test_counter_mode_gives_the_answer_of_sp_800_38a_f_5_5():
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = unhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    stream = Cipher(algorithms.AES256(key), modes.CTR(unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))).encryptor()
    assert stream.update(plain) == unhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


def test_the_keystream_gives_the_answer_of_rfc_8439_section_2_4_2():
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    segment = int.from_bytes(unhex("000000000000004a00000000"), "big")
    stream = keystream.keystream(bytes(range(32)), "chacha20", segment)
    stream.update(bytes(64))  # the example starts at counter 1
    assert stream.update(plain) == unhex(
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"
        "1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )


def test_the_chacha20_mask_is_the_first_two_blocks_of_rfc_8439_appendix_a_1():
    mask = np.zeros(32, dtype=np.uint32)
    add_masks(mask, [(bytes(32), False)], cipher="chacha20")
    assert mask.astype("<u4").tobytes() == unhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


def test_the_aes_mask_of_the_zero_key_is_the_ciphertext_of_test_case_14_of_gcm():
    mask = np.zeros(4, dtype=np.uint32)
    add_masks(mask, [(bytes(32), False)])
    assert mask.astype("<u4").tobytes() == unhex("cea7403d4d606b6e074ec5d3baf39d18")
