"""Signed documents: the exact bytes, under the root's key and the tag that says what they are."""

import pytest

from secure_agg.errors import SignatureError
from secure_agg.keys import SigningKey
from secure_agg.signed import sign_document, verify_document

ROOT = SigningKey.from_bytes(bytes(range(32)))
TAG = "fedmvp/test-document/v1"
DOCUMENT = b"[[site]]\nname = 'a'\n"
SIGNATURE = sign_document(ROOT, TAG, DOCUMENT)


def test_a_document_verifies_as_it_was_signed():
    verify_document(ROOT.verify_key, TAG, DOCUMENT, SIGNATURE, name="roster.toml")


def flipped(signature):
    return bytes([signature[0] ^ 1]) + signature[1:]


@pytest.mark.parametrize(
    "changed",
    [
        {"document": DOCUMENT + b"\n"},
        {"document": DOCUMENT.replace(b"\n", b"\r\n")},
        {"document": b""},
        {"tag": "fedmvp/another-document/v1"},
        {"signature": flipped(SIGNATURE)},
        {"signature": SIGNATURE[:-1]},
        {"signature": b""},
        {"root_key": SigningKey.generate().verify_key},
        {"root_key": b"short"},
    ],
)
def test_anything_else_is_refused_by_name_and_with_a_remedy(changed):
    genuine = {"root_key": ROOT.verify_key, "tag": TAG, "document": DOCUMENT, "signature": SIGNATURE}
    with pytest.raises(SignatureError, match=r"roster\.toml does not carry") as caught:
        verify_document(**(genuine | changed), name="roster.toml")
    assert "install the study package again" in caught.value.remedy
    assert "site" not in str(caught.value)
