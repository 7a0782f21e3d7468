"""docs/configuration.md is complete and true: every key, its default, every variable and every exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from fedmvp.cli.client import client
from fedmvp.cli.server import server
from fedmvp.errors import ExitCode
from fedmvp.study.config import OTHER_VARIABLES, ClientConfig, ServerConfig
from fedmvp.study.documents import keys, tables
from fedmvp.study.policy import StudyPolicy, TaskClass

DOCS = Path(__file__).parents[2] / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
FILES = {"policy.toml": StudyPolicy, "server.toml": ServerConfig, "client.toml": ClientConfig}


def part(text: str, heading: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    level = heading.split(" ", maxsplit=1)[0]
    rest = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{len(level)}}} ", rest, maxsplit=1)[0]


def rows(text: str) -> dict[str, list[str]]:
    """The documented keys of a part: name to its other cells."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in found}


def shown(default: object) -> str:
    if default is PydanticUndefined:
        return "needed"
    if default is None:
        return '`""`'
    return f"`{json.dumps(str(default) if isinstance(default, Path) else default)}`"


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_documented_with_its_range_default_and_meaning(name):
    section = part(CONFIGURATION, f"## {name}")
    for table, key, model in keys(FILES[name]):
        cells = rows(part(section, f"### `[{table}]`"))[key]
        assert len(cells) == 3, (table, key)
        assert cells[1] == shown(model.model_fields[key].default), (table, key)
        assert model.model_fields[key].description, (table, key)
        assert all(cells), (table, key)


@pytest.mark.parametrize("name", FILES)
def test_no_key_is_documented_that_does_not_exist(name):
    section = part(CONFIGURATION, f"## {name}")
    assert re.findall(r"### `\[(\w+)\]`", section) == list(tables(FILES[name]))
    for table, model in tables(FILES[name]).items():
        documented = set(rows(part(section, f"### `[{table}]`")))
        allowed = set(model.model_fields) | (set(TaskClass.model_fields) if table == "task" else set())
        assert documented == allowed, table


def test_the_keys_of_a_class_are_documented():
    assert set(TaskClass.model_fields) <= set(rows(part(CONFIGURATION, "### `[task]`")))


def test_the_order_of_precedence_is_documented():
    order = [CONFIGURATION.index(word) for word in ("1. a flag", "2. an environment", "3. the file", "4. the default")]
    assert order == sorted(order)


def test_every_further_variable_is_documented():
    assert set(rows(part(CONFIGURATION, "## Further variables"))) == set(OTHER_VARIABLES)


def test_every_exit_code_is_documented():
    documented = re.findall(r"^\| (\d+) \|", part(CONFIGURATION, "## Exit codes"), flags=re.M)
    assert [int(code) for code in documented] == [*(int(code) for code in ExitCode), 130]


def test_operations_tells_of_every_command():
    named = set(re.findall(r"fedmvp-(server|client) ([a-z]+)", OPERATIONS))
    existing = {("server", name) for name in server.commands} | {("client", name) for name in client.commands}
    assert existing <= named


def test_every_command_line_in_operations_is_one_that_exists():
    lines = re.findall(r"^ {4}fedmvp-(server|client) (.*(?:\\\n.*)*)$", OPERATIONS, flags=re.M)
    assert len(lines) >= 9
    for program, line in lines:
        words = line.replace("\\\n", " ").split()
        command = (server if program == "server" else client).commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
