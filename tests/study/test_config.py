from __future__ import annotations

from pathlib import Path

import pytest

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import (
    ClientConfig,
    is_loopback,
    load_client_config,
    load_server_config,
    split_endpoint,
    unknown_variables,
    variable_names,
)
from fedmvp.study.templates import CLIENT_TEMPLATE, SERVER_TEMPLATE, toml_value


@pytest.fixture
def server_toml(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text(SERVER_TEMPLATE.format(listen=toml_value("127.0.0.1:8443"), images=toml_value("")))
    return path


@pytest.fixture
def client_toml(tmp_path: Path) -> Path:
    path = tmp_path / "client.toml"
    values = {"name": "site-1", "kind": "image-folder", "data": "images", "dataset_id": "records"}
    path.write_text(
        CLIENT_TEMPLATE.format(epsilon_max=8.0, **{key: toml_value(value) for key, value in values.items()})
    )
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_paths_of_a_file_start_at_its_folder(client_toml, tmp_path):
    config = load_client_config(client_toml, environment={})
    assert config.data.path == tmp_path / "images"
    assert config.study.policy == tmp_path / "study" / "policy.toml"
    assert config.compute.cache_dir == tmp_path / "cache"
    assert config.compute.checkpoint is None
    assert config.source == client_toml


def test_paths_left_out_start_at_the_files_folder_too(client_toml, tmp_path):
    edit(client_toml, 'dir = "state"\n', "")
    edit(client_toml, 'cache_dir = "cache" ', "# ")
    config = load_client_config(client_toml, environment={})
    assert (config.state.dir, config.compute.cache_dir) == (tmp_path / "state", tmp_path / "cache")


def test_a_flag_beats_a_variable_which_beats_the_file_which_beats_the_default(server_toml):
    edit(server_toml, "batch_size = 64", "batch_size = 32")
    environment = {"FEDMVP_EVALUATION_BATCH_SIZE": "16"}
    flag = {"evaluation.batch_size": 8}
    assert load_server_config(server_toml, environment=environment, overrides=flag).evaluation.batch_size == 8
    assert load_server_config(server_toml, environment=environment).evaluation.batch_size == 16
    assert load_server_config(server_toml, environment={}).evaluation.batch_size == 32
    edit(server_toml, "batch_size = 32", "")
    assert load_server_config(server_toml, environment={}).evaluation.batch_size == 64


def test_a_flag_that_was_not_given_changes_nothing(server_toml):
    config = load_server_config(server_toml, environment={}, overrides={"server.listen": None})
    assert config.server.listen == "127.0.0.1:8443"


def test_a_path_in_a_variable_starts_at_the_working_directory(client_toml, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_client_config(client_toml, environment={"FEDMVP_DATA_PATH": "pictures"})
    assert config.data.path == tmp_path / "elsewhere" / "pictures"


def test_every_key_has_a_variable(client_toml):
    environment = {"FEDMVP_PRIVACY_EPSILON_MAX": "3", "FEDMVP_DATA_REQUIRE_EVERY_CLASS": "false"}
    config = load_client_config(client_toml, environment=environment)
    assert (config.privacy.epsilon_max, config.data.require_every_class) == (3.0, False)
    assert len(variable_names(ClientConfig)) == sum(len(part) for part in config.model_dump().values())


@pytest.mark.parametrize(("raw", "value"), [("auto", "auto"), ("64", 64)])
def test_a_variable_may_hold_a_number_or_a_word_where_the_key_takes_both(client_toml, raw, value):
    config = load_client_config(client_toml, environment={"FEDMVP_COMPUTE_MAX_PHYSICAL_BATCH": raw})
    assert config.compute.max_physical_batch == value


def test_a_variable_that_is_no_number_is_refused(client_toml):
    with pytest.raises(UserError, match="threads") as caught:
        load_client_config(client_toml, environment={"FEDMVP_COMPUTE_THREADS": "many"})
    assert "FEDMVP_COMPUTE_THREADS" in caught.value.what


def test_an_unknown_variable_is_reported_with_the_nearest_known_one():
    found = dict(unknown_variables({"FEDMVP_DATA_PAHT": "x", "FEDMVP_DATA_PATH": "y", "PATH": "z"}))
    assert found == {"FEDMVP_DATA_PAHT": "FEDMVP_DATA_PATH"}


@pytest.mark.parametrize(
    ("old", "new", "what", "remedy"),
    [
        ('path = "images"', 'pth = "images"', "unknown key [data] pth (line ", "did you mean [data] path?"),
        ("[compute]", "[compte]", "unknown key [compte]", "did you mean [compute]?"),
        ('dataset_id = "records"', "", "missing key [data] dataset_id", "add [data] dataset_id"),
        ('device = "auto"', 'device = "gpu"', "[compute] device", "docs/configuration.md"),
        ('name = "site-1"', 'name = "Site 1"', "[site] name", "docs/configuration.md"),
        ("epsilon_max = 8.0", "epsilon_max = 0.0", "[privacy] epsilon_max", "docs/configuration.md"),
        ('address = ""', 'address = "server"', "write host:port", "docs/configuration.md"),
        ("threads = 0", "threads = true", "valid integer", "docs/configuration.md"),
        ('batch = "auto"', "batch = 0", "[compute] max_physical_batch", "docs/configuration.md"),
        ('batch = "auto"', 'batch = "all"', 'write a whole number from 1 to 65536, or "auto"', "docs/configuration.md"),
        ('engine = "book-keeping"', 'engine = "ghost"', "[compute] per_sample_engine", "docs/configuration.md"),
        ("memory_limit_gb = 0.0", "memory_limit_gb = inf", "[compute] memory_limit_gb", "docs/configuration.md"),
        ("[data]", "[data", "at line ", "correct that line"),
    ],
)
def test_a_mistake_in_client_toml_is_named_with_its_remedy(client_toml, old, new, what, remedy):
    text = client_toml.read_text()
    client_toml.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_client_config(client_toml, environment={})
    assert caught.value.what.startswith(str(client_toml))
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert caught.value.exit_code is ExitCode.CONFIG


def test_a_table_where_a_value_should_be_is_refused_not_a_crash(client_toml):
    client_toml.write_text("data = 5\n" + client_toml.read_text().replace("[data]", "[other]"))
    with pytest.raises(UserError, match=r"\[data\]"):
        load_client_config(client_toml, environment={"FEDMVP_DATA_PATH": "x"})


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UserError, match="does not exist") as caught:
        load_server_config(tmp_path / "server.toml", environment={})
    assert "fedmvp-server init" in caught.value.remedy


def test_insecure_is_refused_off_loopback(server_toml, client_toml):
    edit(server_toml, "127.0.0.1:8443", "0.0.0.0:8443")
    edit(client_toml, 'address = ""', 'address = "study.example:8443"')
    for load, path in ((load_server_config, server_toml), (load_client_config, client_toml)):
        with pytest.raises(UserError, match="not a loopback address") as caught:
            load(path, environment={}, insecure=True)
        assert caught.value.exit_code is ExitCode.IDENTITY


def test_insecure_comes_from_the_flag_alone(server_toml):
    assert load_server_config(server_toml, environment={}, insecure=True).insecure
    environment = {"FEDMVP_SERVER_INSECURE": "true", "FEDMVP_INSECURE": "1"}
    assert not load_server_config(server_toml, environment=environment).insecure
    edit(server_toml, "[server]", "[server]\ninsecure = true")
    with pytest.raises(UserError, match="unknown key"):
        load_server_config(server_toml, environment={})


@pytest.mark.parametrize("text", ["8443", "host", "host:", ":8443", "host:99999", "::1:8443", "host:-1", "host:٣"])
def test_an_endpoint_without_host_and_port_is_refused(text):
    with pytest.raises(ValueError, match="host:port"):
        split_endpoint(text)


def test_endpoints_split_into_host_and_port():
    assert split_endpoint("study.example:8443") == ("study.example", 8443)
    assert split_endpoint("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_only_loopback_is_loopback(endpoint, local):
    assert is_loopback(endpoint) is local
