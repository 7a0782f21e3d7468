"""Published answers for every primitive, through the code that wraps it here."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secure_agg import masks, sharing
from secure_agg.errors import KeyAgreementError
from secure_agg.keys import AgreementKey, SigningKey, derive
from secure_agg.masks import add_mask

unhex = bytes.fromhex


def test_x25519_gives_the_keys_and_secret_of_rfc_7748_section_6_1():
    alice = AgreementKey(unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = AgreementKey(unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    secret = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.public == unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public == unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert alice.exchange(bob.public) == bob.exchange(alice.public) == secret


def test_x25519_gives_the_first_answer_of_rfc_7748_section_5_2():
    scalar = AgreementKey(unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
    point = unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    answer = unhex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    assert scalar.exchange(point) == answer


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


def test_ed25519_gives_the_first_answer_of_rfc_8032_section_7_1():
    key = SigningKey.from_bytes(unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.verify_key == unhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert key._private.sign(b"") == unhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


@pytest.mark.parametrize(
    ("secret", "salt", "info", "okm"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
        ),
        ("0b" * 22, "", "", "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"),
    ],
)
def test_hkdf_gives_the_first_32_bytes_of_rfc_5869(secret, salt, info, okm):
    assert derive(unhex(secret), salt=unhex(salt), info=unhex(info)) == unhex(okm)


def test_sealing_gives_the_answer_of_rfc_8439_section_2_8_2(monkeypatch):
    key, associated = bytes(range(0x80, 0xA0)), unhex("50515253c0c1c2c3c4c5c6c7")
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    monkeypatch.setattr(sharing, "_NONCE", unhex("070000004041424344454647"))
    monkeypatch.setattr(sharing, "_channel", lambda *_: (ChaCha20Poly1305(key), associated))
    sealed = sharing.seal_shares(b"", b"", sender=1, recipient=2, mask_key_share=plain[:40], self_mask_share=plain[40:])
    assert sealed == unhex(
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691"
    )


def test_the_keystream_gives_the_answer_of_sp_800_38a_f_5_5():
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = unhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    stream = masks._keystream(key, "aes-256-ctr", unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    assert stream.update(plain) == unhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )


def test_the_chacha20_mask_is_the_zero_block_of_rfc_8439_appendix_a_1():
    mask = np.zeros(16, dtype=np.uint32)
    add_mask(mask, bytes(32), cipher="chacha20")
    assert mask.astype("<u4").tobytes() == unhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
