"""What both programs share: the entry point, the one place where errors become messages, and logging.

stdout carries the answer of a command and nothing else; everything for people goes to stderr. A mistake of the user is
one message with its remedy and the exit code of its family; a traceback appears only with --debug or FEDMVP_DEBUG=1.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import structlog
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from fedmvp import __version__
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import ComputeSection, unknown_variables

PIPED_COLUMNS = 200
"""Width of a table that goes into a pipe: nothing is folded that a program or a log may search."""

INTERRUPTED = 130
"""What a shell reports for a program stopped with Ctrl-C."""

Command = TypeVar("Command", bound=Callable[..., Any])


def stderr() -> Console:
    """A console for people."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """A console for answers."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_COLUMNS)


def say(line: str) -> None:
    """Tell the person something that is not the answer."""
    stderr().print(Text(line))


def run_program(group: click.Group, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code.

    Args:
        group: the program's commands.
        name: the program's name in messages.
        arguments: the command line without the program; ``sys.argv`` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("FEDMVP_DEBUG", "") not in {"", "0"}
    given = [argument for argument in given if argument != "--debug"]
    try:
        configure_logging()
        for variable, near in unknown_variables(os.environ):
            hint = f"; did you mean {near}?" if near else ""
            say(f"warning: the variable {variable} means nothing here{hint}")
        code = group.main(args=given, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except (KeyboardInterrupt, click.Abort):
        say("stopped")
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last place before the person
        if debug:
            traceback.print_exc()
        sys.exit(report(error))


def report(error: Exception) -> int:
    """Print one error for a person and return its exit code."""
    shown = as_user_error(error)
    console = stderr()
    console.print(Text.assemble(("error: ", "bold red"), shown.what))
    console.print(Text.assemble(("remedy: ", "bold"), shown.remedy))
    return int(shown.exit_code)


def as_user_error(error: Exception) -> UserError:
    """Translate what a command raised into a message, a remedy and an exit code."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, click.ClickException):
        context = error.ctx if isinstance(error, click.UsageError) else None
        command = context.command_path if context is not None else "the command"
        return UserError(
            error.format_message(), remedy=f"{command} --help lists what it takes", exit_code=ExitCode.USAGE
        )
    return (
        _from_libraries(error)
        or _from_files(error)
        or UserError(
            f"internal error: {type(error).__name__}: {error}",
            remedy="this is a defect: run the command again with --debug and report what it prints",
            exit_code=ExitCode.INTERNAL,
        )
    )


def _from_libraries(error: Exception) -> UserError | None:
    """The refusals of the ledger and of the secure sum."""
    from privacy.errors import (  # noqa: PLC0415
        LedgerError,
        LedgerExists,
        LedgerLocked,
        LedgerMissing,
        LedgerRolledBack,
        LedgerVersionUnknown,
        NotDecomposable,
        PrivacyRefused,
        RanksError,
    )
    from secure_agg.errors import SecureAggregationError  # noqa: PLC0415

    remedies: list[tuple[type[Exception], str, ExitCode]] = [
        (
            NotDecomposable,
            "this is a defect of the model, nothing was spent: report it; no setting of this site changes it",
            ExitCode.INTERNAL,
        ),
        (
            PrivacyRefused,
            "fedmvp-client ledger shows what was spent; a spent budget does not come back",
            ExitCode.BUDGET,
        ),
        (
            LedgerMissing,
            "restore the ledger from your backup; for new records: fedmvp-client ledger create",
            ExitCode.LEDGER,
        ),
        (
            LedgerExists,
            "fedmvp-client ledger shows it; a ledger is never made anew for the same records",
            ExitCode.LEDGER,
        ),
        (LedgerLocked, "stop the other fedmvp-client that uses this ledger", ExitCode.LEDGER),
        (
            LedgerRolledBack,
            "put the newest ledger back; if it is lost, what was spent since is unknown, and these records can take "
            "part in nothing more: see docs/operations.md, 'What to back up'",
            ExitCode.LEDGER,
        ),
        (
            LedgerVersionUnknown,
            "use the version of fedmvp that wrote it last: an older one cannot know what it spent",
            ExitCode.LEDGER,
        ),
        (LedgerError, "restore the ledger from your backup, and keep the damaged file", ExitCode.LEDGER),
        (
            RanksError,
            "nothing of this round was released; each process says on its own what it found: put that right, give all "
            "of them the same software, study and images, and start them together again",
            ExitCode.COMPUTE,
        ),
        (SecureAggregationError, "see docs/operations.md, 'When a round aborts'", ExitCode.PROTOCOL),
    ]
    for kind, remedy, code in remedies:
        if isinstance(error, kind):
            own = error.remedy if isinstance(error, SecureAggregationError | LedgerError) else ""
            return UserError(str(error).removesuffix(f"; {own}"), remedy=own or remedy, exit_code=code)
    return None


def _from_files(error: Exception) -> UserError | None:
    """What the operating system says of a file that a command named or wrote."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return UserError(
            f"cannot use {os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: "
            f"{error.strerror}",
            remedy="check that the path exists, its owner and permissions, and the free space of the disk",
        )
    return None


def configure_logging() -> None:
    """Send log lines to stderr: text on a terminal, JSON lines otherwise, or as FEDMVP_LOG_FORMAT says."""
    style = os.environ.get("FEDMVP_LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json")
    level = (os.environ.get("FEDMVP_LOG_LEVEL") or "info").upper()
    if style not in {"text", "json"}:
        raise UserError(f"FEDMVP_LOG_FORMAT is {style!r}", remedy="set it to text or json", exit_code=ExitCode.USAGE)
    if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        raise UserError(
            f"FEDMVP_LOG_LEVEL is {level!r}", remedy="set it to debug, info, warning or error", exit_code=ExitCode.USAGE
        )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if style == "text" else _json_renderer()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _json_renderer() -> Any:
    return structlog.processors.JSONRenderer(sort_keys=True)


def check_device_name(device: str) -> None:
    """Refuse what [compute] device would refuse.

    Raises:
        UserError: not the name of a device.
    """
    try:
        ComputeSection(device=device)
    except ValidationError:
        raise UserError(
            f"--device {device!r} is not a device",
            remedy="give auto, cpu, mps, cuda or cuda:N",
            exit_code=ExitCode.USAGE,
        ) from None


def program_options(command: Command) -> Command:
    """Add --version and --debug to a program."""
    command = click.option(
        "--debug", is_flag=True, help="Show the traceback of an error; also FEDMVP_DEBUG=1.", expose_value=False
    )(command)
    return click.version_option(__version__, "--version", prog_name="fedmvp")(command)


def config_option(default: str) -> Callable[[Command], Command]:
    """Add --config."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        default=default,
        show_default=True,
        envvar="FEDMVP_CONFIG",
        help="The configuration file; also FEDMVP_CONFIG.",
    )


def format_option(command: Command) -> Command:
    """Add --format text|json; the parameter is called ``style``."""
    return click.option(
        "--format",
        "style",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How the answer is printed on stdout.",
    )(command)


def insecure_option(command: Command) -> Command:
    """Add --insecure, which no variable and no file can set."""
    return click.option(
        "--insecure",
        is_flag=True,
        help="No TLS and no identity: for tries on one machine; refused unless the address is loopback.",
    )(command)
