"""``fedmvp-client check``: everything that would stop a run, looked at before it starts.

Each check runs on its own, so that one visit shows every problem; each problem carries the same message and remedy
that the run itself would have shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.text import Text

from fedmvp.cli.budget import BudgetPlan, plan_budget
from fedmvp.cli.ledger import open_own_ledger, require_same_terms
from fedmvp.cli.presentation import print_json, print_table
from fedmvp.cli.program import as_user_error, say, stdout
from fedmvp.client.delta import require_small_delta, units_of
from fedmvp.data.dataset import IMAGE_SUFFIXES, image_folder, manifest
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.cache_key import CACHE_KEY_FILE, load_cache_key
from fedmvp.study.config import ClientConfig, load_client_config
from fedmvp.study.credentials import check_keys, load_tls
from fedmvp.study.identity import EXPIRY_WARNING_DAYS, TlsKey
from fedmvp.study.policy import StudyPolicy, load_policy
from fedmvp.study.roster import find_site, load_roster
from fedmvp.study.signatures import fingerprint, load_root_key, load_signing_key

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        subject: what was looked at.
        verdict: whether a run can start with it.
        detail: what was found.
        remedy: what to do; empty when nothing.
        exit_code: the family of a problem.
    """

    subject: str
    verdict: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""
    exit_code: ExitCode = ExitCode.OK


@dataclass
class Findings:
    """The results so far."""

    items: list[Finding] = field(default_factory=list)

    def ok(self, subject: str, detail: str) -> None:
        """Record that a subject is in order."""
        self.items.append(Finding(subject, "ok", detail))

    def warn(self, subject: str, detail: str, remedy: str) -> None:
        """Record something that does not stop a run."""
        self.items.append(Finding(subject, "warning", detail, remedy))

    @contextmanager
    def problems_of(self, subject: str) -> Iterator[None]:
        """Turn an error inside the block into a problem of ``subject``."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - every check must run; a defect shows as an internal error
            shown = as_user_error(error)
            self.items.append(Finding(subject, "problem", shown.what, shown.remedy, shown.exit_code))

    @property
    def exit_code(self) -> ExitCode:
        """The code of the first problem."""
        return next((item.exit_code for item in self.items if item.verdict == "problem"), ExitCode.OK)


def check_site(path: Path, *, style: str, offline: bool, insecure: bool) -> ExitCode:
    """Run every check and print the results.

    Args:
        path: ``client.toml``.
        style: "text" or "json".
        offline: do not try to reach the server.
        insecure: reach the server without TLS.

    Returns:
        The exit code: that of the first problem.

    Raises:
        UserError: the configuration itself cannot be read.
    """
    config = load_client_config(path, insecure=insecure)
    findings = Findings()
    findings.ok("configuration", str(config.source))
    policy, active_sites = _check_study(config, findings)
    _check_certificate(config, findings)
    if policy is not None:
        _check_data(config, policy, findings, active_sites=active_sites)
    plan = _check_ledger(config, policy, findings)
    _check_compute(config, findings)
    if offline:
        findings.warn("server", "not tried (--offline)", "run fedmvp-client check without --offline")
    else:
        _check_server(config, findings)
    _show(findings, plan, style)
    return findings.exit_code


def _check_study(config: ClientConfig, findings: Findings) -> tuple[StudyPolicy | None, int]:
    """The policy, and how many sites the roster holds; None and 1 where they cannot be read."""
    files, active_sites = config.study, 1
    policy: StudyPolicy | None = None
    with findings.problems_of("root key"):
        root_key = load_root_key(files.root_key)
        findings.ok("root key", fingerprint(root_key))
        with findings.problems_of("policy"):
            policy = load_policy(files.policy, files.policy_signature, root_key)
            findings.ok("policy", f"signed; run {policy.study.run_id}, {policy.study.rounds} rounds")
            if policy.privacy.mode == "UNSAFE-no-dp":
                findings.warn("policy", "UNSAFE-no-dp: no differential privacy", "use public data only")
        with findings.problems_of("roster"):
            roster = load_roster(files.roster, files.roster_signature, root_key)
            active_sites = len(roster.active_ids)
            entry = find_site(roster, config.site.name)
            findings.ok("roster", f"signed; version {roster.version}, {active_sites} active sites")
            with findings.problems_of("identity"):
                signing_key = load_signing_key(config.identity.signing_key, what="signing key")
                tls_key = TlsKey.load(config.identity.private_key)
                check_keys(entry, signing_key.verify_key, tls_key.sha256)
                findings.ok("identity", f"{entry.name} ({entry.organisation}) is site {entry.site_id}")
    return policy, active_sites


def _check_certificate(config: ClientConfig, findings: Findings) -> None:
    with findings.problems_of("certificate"):
        days = load_tls(config.identity).days_left
        if days < EXPIRY_WARNING_DAYS:
            remedy = "ask the consortium to enrol the same request.json again, then join with the new package"
            findings.warn("certificate", f"expires in {days} days", remedy)
        else:
            findings.ok("certificate", f"valid for {days} days, key readable by its owner only")


def _check_data(config: ClientConfig, policy: StudyPolicy, findings: Findings, *, active_sites: int) -> None:
    data, names = config.data, policy.task.class_names
    with findings.problems_of("data"):
        if data.kind == "manifest":
            dataset = manifest(data.path, names, require_every_class=data.require_every_class)
        else:
            _check_folders(data.path, names, require_every_class=data.require_every_class)
            dataset = image_folder(data.path, names, require_every_class=data.require_every_class)
        findings.ok("data", f"images of {len(set(dataset.labels))} of {len(names)} classes in {data.path}")
        with findings.problems_of("delta"):
            require_small_delta(policy, active_sites if policy.privacy.unit == "site" else units_of(policy, dataset))
            findings.ok("delta", f"{policy.privacy.delta:g} is small enough for this site")


def _check_folders(path: Path, names: Sequence[str], *, require_every_class: bool) -> None:
    """Name every folder that does not fit at once; the loader stops at the first."""
    if not path.is_dir():
        return
    folders = {item.name for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")}
    unknown = sorted(folders - set(names))
    expected = names if require_every_class else [name for name in names if name in folders]
    empty = [name for name in expected if not _holds_an_image(path / name)]
    problems = [f"no class of the study: {', '.join(unknown)}"] if unknown else []
    problems += [f"no images of: {', '.join(empty)}"] if empty else []
    if problems:
        raise UserError(
            f"image folder {path}: {'; '.join(problems)}",
            remedy="folders are named exactly as the classes of the policy; a site that holds only some of the classes "
            "sets [data] require_every_class = false",
        )


def _holds_an_image(folder: Path) -> bool:
    return any(item.suffix.lower() in IMAGE_SUFFIXES and item.is_file() for item in folder.rglob("*"))


def _check_ledger(config: ClientConfig, policy: StudyPolicy | None, findings: Findings) -> BudgetPlan | None:
    plan: BudgetPlan | None = None
    with findings.problems_of("ledger"), open_own_ledger(config, None) as ledger:
        findings.ok("ledger", f"{len(ledger.entries())} entries, every link holds; head {ledger.head.hex()[:16]}")
        if ledger.epsilon_max < config.privacy.epsilon_max:
            findings.warn(
                "ledger",
                f"stops at epsilon {ledger.epsilon_max:g}; [privacy] epsilon_max says {config.privacy.epsilon_max:g}",
                "correct client.toml: the ledger's limit was chosen when it was created",
            )
        if policy is not None:
            with findings.problems_of("budget"):
                require_same_terms(ledger, policy)
                plan = plan_budget(ledger, policy, epsilon_max=config.privacy.epsilon_max)
                _judge(plan, findings)
    return plan


def _judge(plan: BudgetPlan, findings: Findings) -> None:
    if plan.affordable_round >= plan.planned_rounds:
        findings.ok("budget", f"enough for all {plan.planned_rounds} rounds")
    elif plan.affordable_round > plan.last_round:
        findings.warn(
            "budget",
            f"ends after round {plan.affordable_round} of {plan.planned_rounds}",
            "the site will stop there; a larger budget is a decision for those whose records these are",
        )
    else:
        raise UserError(
            f"round {plan.last_round + 1} would pass the limit of epsilon {plan.limit:g}, {plan.meaning}",
            remedy="these records cannot take part any more; fedmvp-client ledger shows what was spent",
            exit_code=ExitCode.BUDGET,
        )


def _check_compute(config: ClientConfig, findings: Findings) -> None:
    with findings.problems_of("compute"):
        device = config.compute.device
        if device not in {"auto", "cpu"}:
            from fedmvp.client.trainer import choose_device  # noqa: PLC0415 - loads torch

            choose_device(device)
        if config.compute.checkpoint is not None and not config.compute.checkpoint.is_file():
            raise UserError(
                f"checkpoint {config.compute.checkpoint} does not exist", remedy="correct [compute] checkpoint"
            )
        cache_key = config.identity.signing_key.with_name(CACHE_KEY_FILE)
        if cache_key.exists() and config.compute.cache_max_gb > 0:
            load_cache_key(cache_key)
        findings.ok("compute", f"device {device}")


def _check_server(config: ClientConfig, findings: Findings) -> None:
    from fedmvp.client.reach import reach_server  # noqa: PLC0415 - loads grpc

    with findings.problems_of("server"):
        if not config.server.address:
            raise UserError(
                "[server] address is empty", remedy="install the study package: fedmvp-client join PACKAGE --root ..."
            )
        reach_server(config)
        findings.ok("server", f"{config.server.address} answers and knows this site")


def _show(findings: Findings, plan: BudgetPlan | None, style: str) -> None:
    if style == "json":
        print_json(
            {
                "ok": findings.exit_code is ExitCode.OK,
                "findings": [{**asdict(item), "exit_code": int(item.exit_code)} for item in findings.items],
                "budget": plan.as_json() if plan is not None else None,
            }
        )
        return
    for item in findings.items:
        mark = Text(f"{item.verdict:<9}", style=STYLES[item.verdict])
        stdout().print(Text.assemble(mark, (f"{item.subject:<14}", "bold"), item.detail), soft_wrap=True)
        if item.remedy:
            stdout().print(Text(f"{'':<23}remedy: {item.remedy}"), soft_wrap=True)
    if plan is not None:
        print_table(plan.title, plan.columns, plan.rows())
    count = sum(item.verdict == "problem" for item in findings.items)
    say("ready to run" if count == 0 else f"{count} problem{'s' if count > 1 else ''} to put right before a run")
