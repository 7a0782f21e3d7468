from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import structlog

import fedmvp
from fedmvp.cli.program import as_user_error
from fedmvp.errors import ExitCode, UserError
from privacy.errors import (
    BudgetExceeded,
    LedgerCorrupt,
    LedgerLocked,
    LedgerMissing,
    LedgerRolledBack,
    LedgerUnreachable,
    LedgerVersionUnknown,
    NotDecomposable,
)
from secure_agg.errors import AggregationAborted, LocalProtocolError, RemoteProtocolError

SERVER_COMMANDS = {"init", "plan", "enroll", "revoke", "renew", "run", "status", "export"}
CLIENT_COMMANDS = {"init", "join", "check", "run", "ledger", "claim", "audit", "predict", "export"}


HEAVY = {
    "PIL",
    "cryptography",
    "dp_accounting",
    "google",
    "grpc",
    "numpy",
    "opacus",
    "open_clip",
    "privacy",
    "safetensors",
    "scipy",
    "secure_agg",
    "timm",
    "torch",
    "torchvision",
}
"""What only a command that does its work may load."""


def imported_by(program_name: str, *arguments: str, before: str = "") -> set[str]:
    script = (
        f"import sys; {before}\nfrom fedmvp.cli.{program_name} import main\n"
        f"sys.argv = ['fedmvp', *{arguments!r}]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    root = Path(fedmvp.__file__).parent.parent
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert "Usage: fedmvp" in finished.stdout
    return set(finished.stderr.split())


@pytest.mark.parametrize("program_name", ["server", "client"])
def test_help_loads_nothing_that_takes_long(program_name):
    modules = imported_by(program_name, "--help")
    assert {"click", f"fedmvp.cli.{program_name}"} <= modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(("program_name", "command"), [("client", "predict"), ("client", "run"), ("server", "export")])
def test_help_of_a_command_loads_nothing_that_takes_long_either(program_name, command):
    assert imported_by(program_name, command, "--help") & HEAVY == set()


@pytest.mark.parametrize(
    ("eager", "caught"),
    [
        ("import fedmvp.cli.predict", {"torch", "torchvision", "open_clip", "timm", "numpy", "PIL"}),
        ("import fedmvp.cli.running", {"grpc", "google", "cryptography", "privacy", "secure_agg"}),
    ],
)
def test_an_import_that_is_not_left_to_its_command_would_be_seen(eager, caught):
    assert caught <= imported_by("client", "--help", before=eager) & HEAVY


def test_help_of_the_server_names_every_command(run):
    result = run("fedmvp-server", "--help")
    assert result.code == 0
    assert result.out.startswith("Usage: fedmvp-server [OPTIONS] COMMAND [ARGS]...")
    assert {line.split()[0] for line in result.out.split("Commands:\n")[1].splitlines()} == SERVER_COMMANDS


def test_help_of_the_client_names_every_command(run):
    result = run("fedmvp-client", "--help")
    assert {line.split()[0] for line in result.out.split("Commands:\n")[1].splitlines()} == CLIENT_COMMANDS


@pytest.mark.parametrize("name", ["fedmvp-server", "fedmvp-client"])
def test_every_command_explains_itself(run, name):
    commands = SERVER_COMMANDS if name == "fedmvp-server" else CLIENT_COMMANDS
    for command in sorted(commands):
        result = run(name, command, "--help")
        assert result.code == 0
        assert result.out.startswith(f"Usage: {name} {command}")
        assert result.err == ""


def test_a_mistyped_command_is_one_message_and_code_2(run):
    result = run("fedmvp-client", "chek")
    assert result.code == ExitCode.USAGE
    assert result.out == ""
    assert result.err.splitlines() == [
        "error: No such command 'chek'. Did you mean 'check'?",
        "remedy: fedmvp-client --help lists what it takes",
    ]


def test_a_defect_of_ours_shows_no_traceback_unless_asked(run, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("boom")

    monkeypatch.setattr("fedmvp.cli.client.load_client_config", fail)
    quiet = run("fedmvp-client", "ledger")
    assert quiet.code == ExitCode.INTERNAL
    assert quiet.err.splitlines()[0] == "error: internal error: RuntimeError: boom"
    assert "Traceback" not in quiet.err
    assert "Traceback" in run("fedmvp-client", "ledger", "--debug").err
    assert "Traceback" in run("fedmvp-client", "ledger", FEDMVP_DEBUG="1").err


def test_ctrl_c_is_no_error(run, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmvp.cli.client.load_client_config", interrupt)
    result = run("fedmvp-client", "ledger")
    assert (result.code, result.err) == (130, "\nstopped\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x", remedy="y", exit_code=ExitCode.NETWORK), ExitCode.NETWORK),
        (click.UsageError("x"), ExitCode.USAGE),
        (BudgetExceeded(9.0, 8.0, "at delta 1e-05"), ExitCode.BUDGET),
        (NotDecomposable("x"), ExitCode.INTERNAL),
        (PermissionError(13, "Permission denied", "/x"), ExitCode.CONFIG),
        (OSError("no file named"), ExitCode.INTERNAL),
        (LedgerMissing("x"), ExitCode.LEDGER),
        (LedgerLocked("x"), ExitCode.LEDGER),
        (LedgerCorrupt("x"), ExitCode.LEDGER),
        (AggregationAborted("masked_input", "x"), ExitCode.PROTOCOL),
        (ZeroDivisionError("x"), ExitCode.INTERNAL),
    ],
)
def test_every_family_of_errors_has_its_code_and_a_remedy(error, code):
    shown = as_user_error(error)
    assert shown.exit_code is code
    assert shown.remedy


def test_a_remedy_of_the_secure_sum_is_shown_as_the_remedy_and_not_twice():
    shown = as_user_error(LocalProtocolError("the file is in use", remedy="stop the other client first"))
    assert (shown.what, shown.remedy) == ("the file is in use", "stop the other client first")
    assert "operations.md" in as_user_error(RemoteProtocolError(3, "unmask", "a share is missing")).remedy


def test_a_remedy_of_the_ledger_is_shown_as_the_remedy_and_not_twice():
    shown = as_user_error(LedgerUnreachable("the ledger cannot be read", remedy="mount the disk"))
    assert (shown.what, shown.remedy) == ("the ledger cannot be read", "mount the disk")
    assert shown.exit_code is ExitCode.LEDGER


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (LedgerRolledBack("x"), "put the newest ledger back"),
        (LedgerVersionUnknown("x"), "the version of fedmvp that wrote it"),
        (LedgerCorrupt("x"), "keep the damaged file"),
        (LedgerMissing("x"), "restore the ledger"),
        (LedgerLocked("x"), "stop the other fedmvp-client"),
    ],
)
def test_each_ledger_that_cannot_be_used_has_advice_of_its_own(error, advice):
    assert advice in as_user_error(error).remedy


def test_a_module_that_cannot_be_trained_privately_is_not_called_a_spent_budget():
    shown = as_user_error(NotDecomposable("a layer mixes records"))
    assert "defect of the model" in shown.remedy
    assert "budget" not in shown.remedy


def test_a_file_that_cannot_be_used_is_named_with_the_reason(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fedmvp.cli.client.load_client_config", lambda *_arguments, **_options: tmp_path.read_bytes())
    result = run("fedmvp-client", "ledger")
    assert result.code == ExitCode.CONFIG
    assert result.err.splitlines()[0] == f"error: cannot use {tmp_path}: Is a directory"
    assert result.err.splitlines()[1].startswith("remedy: check that the path exists")


def test_a_study_from_a_binary_policy_is_refused_before_anything_is_made(run, tmp_path):
    policy = tmp_path / "policy.bin"
    policy.write_bytes(b"\xff\xfe\x00")
    arguments = ("--run-id", "r", "--address", "127.0.0.1:8443", "--policy", policy)
    result = run("fedmvp-server", "init", tmp_path / "study", *arguments)
    assert result.code == ExitCode.CONFIG
    assert result.err.splitlines()[0] == f"error: policy {policy} is not UTF-8 text"
    assert not (tmp_path / "study").exists()


def test_an_unknown_variable_is_a_warning(run):
    result = run("fedmvp-client", "--help", FEDMVP_DATA_PAHT="x")
    assert result.code == 0
    assert result.err == "warning: the variable FEDMVP_DATA_PAHT means nothing here; did you mean FEDMVP_DATA_PATH?\n"


def test_log_lines_are_json_where_there_is_no_terminal(run, capsys):
    run("fedmvp-client", "--help", FEDMVP_LOG_FORMAT="json")
    structlog.get_logger("fedmvp.test").info("phase", round=3)
    # the handler holds the stream it was given; what it wrote is on the captured stderr
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["round"], line["level"]) == ("phase", 3, "info")


def test_log_lines_are_text_when_asked(run, capsys):
    run("fedmvp-client", "--help", FEDMVP_LOG_FORMAT="text", FEDMVP_LOG_LEVEL="warning")
    structlog.get_logger("fedmvp.test").info("hidden")
    structlog.get_logger("fedmvp.test").warning("shown", round=3)
    err = capsys.readouterr().err
    assert "hidden" not in err
    assert "shown" in err
    with pytest.raises(ValueError, match="line 1"):
        json.loads(err)


@pytest.mark.parametrize("variable", ["FEDMVP_LOG_FORMAT", "FEDMVP_LOG_LEVEL"])
def test_a_wrong_log_setting_is_refused(run, variable):
    result = run("fedmvp-client", "--help", **{variable: "loud"})
    assert result.code == ExitCode.USAGE
    assert f"error: {variable} is" in result.err


def test_version_is_the_packages(run):
    assert run("fedmvp-server", "--version").out == f"fedmvp, version {fedmvp.__version__}\n"


def test_the_installed_commands_are_these_programs(monkeypatch, capsys):
    for name in ("server", "client"):
        monkeypatch.setattr(sys, "argv", [f"fedmvp-{name}", "--version"])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"fedmvp.cli.{name}").main()
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith("fedmvp, version")
