from __future__ import annotations

import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.policy import POLICY_TAG, load_policy, parse_policy
from fedmvp.study.roster import ROSTER_TAG
from fedmvp.study.signatures import load_root_key, sign_document
from fedmvp.study.storage import write_atomic
from fedmvp.study.templates import policy_template, toml_text, toml_value
from secure_agg.keys import SigningKey

TEMPLATE = policy_template("run-1")


def refused(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_policy(text.encode())
    assert caught.value.exit_code is ExitCode.CONFIG
    return caught.value


def changed(old: str, new: str) -> str:
    assert TEMPLATE.count(old) == 1
    return TEMPLATE.replace(old, new)


def test_the_template_is_a_valid_policy():
    policy = parse_policy(TEMPLATE.encode())
    assert policy.study.run_id == "run-1"
    assert policy.task.class_names == ("cat", "dog")
    assert policy.task.sentences[0][0] == "a photo of a cat, which has whiskers"
    assert policy.total_steps == 100


def test_tables_made_by_a_program_read_back_as_the_same_policy():
    again = parse_policy(toml_text(tomllib.loads(TEMPLATE)).encode())
    assert again.model_dump() == parse_policy(TEMPLATE.encode()).model_dump()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no defect
@given(
    st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
)
def test_every_value_a_program_writes_reads_back_unchanged(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


def test_a_misspelt_key_is_refused_with_its_line_and_the_nearest_valid_key():
    error = refused(changed("noise_multiplier =", "nois_multiplier ="))
    line = TEMPLATE[: TEMPLATE.index("noise_multiplier =")].count("\n") + 1
    assert error.what == f"policy.toml: unknown key [privacy] nois_multiplier (line {line})"
    assert error.remedy == "did you mean [privacy] noise_multiplier?"


def test_a_key_in_the_wrong_table_is_told_where_it_belongs():
    error = refused(changed("local_steps = 5", "local_steps = 5\nsample_rate = 0.5"))
    assert "unknown key [training] sample_rate" in error.what
    assert error.remedy == "that key belongs to [privacy] sample_rate"


def test_a_misspelt_key_of_a_class_is_found_too():
    error = refused(TEMPLATE.replace('name = "cat"', 'nme = "cat"'))
    assert "[task] classes[0].nme" in error.what
    assert error.remedy == "did you mean [task] classes[0].name?"


def test_a_broken_line_is_named_by_its_number():
    error = refused(changed('mode = "record-local"', "mode = record-local"))
    line = TEMPLATE[: TEMPLATE.index('mode = "record-local"')].count("\n") + 1
    assert f"line {line}" in error.what


def test_text_that_is_not_utf8_is_named_by_its_line():
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        parse_policy(b'[study]\ntitle = "\xff"\n')


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("noise_multiplier = 2.0", "noise_multiplier = -1.0", "greater than or equal to 0"),
        ("noise_multiplier = 2.0", "noise_multiplier = 0.0", "needs noise_multiplier above 0"),
        ("noise_multiplier = 2.0", "noise_multiplier = 0.1", "at least 0.3"),
        ("noise_multiplier = 2.0", 'noise_multiplier = "2"', "valid number"),
        ("noise_multiplier = 2.0", "noise_multiplier = nan", "noise_multiplier"),
        ("sample_rate = 0.1", "sample_rate = 1.5", "less than or equal to 1"),
        ("sample_rate = 0.1", "sample_rate = true", "valid number"),
        ("epsilon_max = 8.0", "epsilon_max = inf", "finite epsilon_max"),
        ('mode = "record-local" ', 'mode = "UNSAFE-no-dp" ', "write epsilon_max = inf"),
        ('mode = "record-local" ', 'mode = "none" ', "'silo-distributed' or 'UNSAFE-no-dp'"),
        ('unit = "record"', 'unit = "image"', "'record', 'patient' or 'site'"),
        ('unit = "record"', 'unit = "site"', "a site is the unit of silo-distributed"),
        ("rounds = 20", "rounds = 0", "greater than or equal to 1"),
        ("rounds = 20", "rounds = 20.5", "valid integer"),
        ("min_cohort = 3", "min_cohort = 2", "greater than or equal to 3"),
        ("min_honest = 2", "min_honest = 3", "fewer than 3 honest inputs"),
        ("min_honest = 2", "min_honest = 1", "greater than or equal to 2"),
        ("colluders = 1 ", "colluders = 0 ", "greater than or equal to 1"),
        ("colluders = 1 ", "colluders = 3 ", "threshold"),
        ("max_cohort = 32", "max_cohort = 10001", "less than or equal to 10000"),
        ("ring_bits = 32", "dropout_permille = 501", "less than or equal to 500"),
        ("ring_bits = 32", 'mask_cipher = "rot13"', "'aes-256-ctr' or 'chacha20'"),
        ("value_range = 4.0", "value_range = 1e12", "does not fit a ring"),
        ("which has {attribute}", "which has {thing}", "names {name} and {attribute}"),
        ("which has {attribute}", "which has {attribute!r}", "nothing else in braces"),
        ('name = "dog"', 'name = "Cat"', "listed twice"),
        ('name = "dog"', 'name = "../dog"', "also a folder name"),
        ('attributes = ["whiskers", "pointed ears", "soft fur"]', "attributes = []", "at least 1 item"),
        ("delta = 1e-5", "delta = 0.5", "less than 0.01"),
        ('run_id = "run-1"', 'run_id = "Run 1"', "pattern"),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(old, new, message):
    assert message in refused(changed(old, new)).what


def test_a_policy_without_privacy_must_say_so_twice():
    text = changed('mode = "record-local" ', 'mode = "UNSAFE-no-dp" ').replace("epsilon_max = 8.0", "epsilon_max = inf")
    policy = parse_policy(text.encode())
    assert policy.privacy_parameters(1).mode == "UNSAFE-no-dp"


def test_a_policy_may_protect_whole_patients():
    parameters = parse_policy(changed('unit = "record"', 'unit = "patient"').encode()).privacy_parameters(1)
    assert (parameters.unit, parameters.noise_shares) == ("patient", None)


def test_every_mistake_of_a_document_is_named_at_once():
    text = TEMPLATE.replace("sample_rate = 0.1", "sample_rate = 2.0").replace("rounds = 20", "round = 20")
    what = refused(text).what
    assert "unknown key [study] round" in what
    assert "[privacy] sample_rate" in what


def test_a_changed_comment_changes_the_hash():
    one, other = parse_policy(TEMPLATE.encode()), parse_policy((TEMPLATE + "# note\n").encode())
    assert one.model_dump() == other.model_dump()
    assert one.hash != other.hash
    assert len(one.hash) == 32


def test_the_policy_gives_the_secure_sum_and_the_privacy_their_numbers():
    policy = parse_policy(TEMPLATE.encode())
    sums, parameters = policy.secure_sum(1000), policy.privacy_parameters(1000)
    assert (sums.dimension, sums.threshold(4)) == (1000, 3)
    assert (sums.length, sums.max_weight) == (1000, None)
    assert (sums.dropout_permille, sums.mask_cipher) == (50, "aes-256-ctr")
    assert sums.max_magnitude >= 4.0 * 2**sums.fraction_bits
    assert (parameters.steps_per_round, parameters.noise_multiplier, parameters.delta) == (5, 2.0, 1e-5)


def test_a_policy_for_many_sites_gives_the_secure_sum_its_graph_and_its_cipher():
    text = TEMPLATE.replace("max_cohort = 32 ", "max_cohort = 400 ").replace(
        "ring_bits = 32", 'dropout_permille = 100\nmask_cipher = "chacha20"'
    )
    sums = parse_policy(text.encode()).secure_sum(1000)
    assert (sums.dropout_permille, sums.mask_cipher) == (100, "chacha20")
    assert not sums.graph(100).sparse
    assert sums.graph(400).sparse
    assert sums.graph(400).key_floor == 360


def test_what_the_secure_sum_refuses_is_said_without_a_remedy_of_its_own_behind_it():
    what = refused(changed("min_honest = 2", "min_honest = 3")).what
    assert "fewer than 3 honest inputs" in what
    assert ";" not in what


@pytest.fixture
def signed(tmp_path):
    root = SigningKey.generate()
    policy, signature = tmp_path / "policy.toml", tmp_path / "policy.toml.sig"
    write_atomic(policy, TEMPLATE.encode())
    write_atomic(signature, sign_document(root, POLICY_TAG, TEMPLATE.encode()))
    return root, policy, signature


def test_a_signed_policy_loads(signed):
    root, policy, signature = signed
    assert load_policy(policy, signature, root.verify_key).document == TEMPLATE.encode()


@pytest.mark.parametrize("place", [0, len(TEMPLATE) // 2, len(TEMPLATE) - 1])
def test_a_policy_changed_in_one_byte_is_refused(signed, place):
    root, policy, signature = signed
    content = bytearray(policy.read_bytes())
    content[place] ^= 1
    policy.write_bytes(content)
    with pytest.raises(UserError, match="valid signature") as caught:
        load_policy(policy, signature, root.verify_key)
    assert caught.value.exit_code is ExitCode.IDENTITY


def test_a_policy_signed_by_another_root_is_refused(signed):
    _, policy, signature = signed
    with pytest.raises(UserError, match="valid signature"):
        load_policy(policy, signature, SigningKey.generate().verify_key)


def test_a_signature_under_another_tag_is_refused(signed):
    root, policy, signature = signed
    write_atomic(signature, sign_document(root, ROSTER_TAG, TEMPLATE.encode()))
    with pytest.raises(UserError, match="valid signature"):
        load_policy(policy, signature, root.verify_key)


@pytest.mark.parametrize("content", [b"", b"zz", b"00" * 63, b"\xff\xfe"])
def test_a_damaged_signature_file_is_refused(signed, content):
    root, policy, signature = signed
    signature.write_bytes(content)
    with pytest.raises(UserError, match="valid signature"):
        load_policy(policy, signature, root.verify_key)


def test_a_missing_policy_is_named(tmp_path):
    with pytest.raises(UserError, match=r"policy\.toml does not exist"):
        load_policy(tmp_path / "policy.toml", tmp_path / "policy.toml.sig", bytes(32))


def test_a_root_file_that_is_no_key_is_refused(tmp_path):
    (tmp_path / "root.pub").write_text("hello")
    with pytest.raises(UserError, match="not an Ed25519 public key") as caught:
        load_root_key(tmp_path / "root.pub")
    assert caught.value.exit_code is ExitCode.IDENTITY
