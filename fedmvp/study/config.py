"""server.toml and client.toml: where things are on this machine.

Nothing here matters for privacy or for the sum; that is in the signed policy. A value comes from a flag, else from a
``FEDMVP_*`` variable, else from the file, else from its default. Paths in a file are relative to that file; paths in
flags and variables are relative to the working directory.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field, PrivateAttr

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.documents import Section, keys, nearest, parse_toml, read_document, validate

VARIABLE_PREFIX = "FEDMVP_"
OTHER_VARIABLES = frozenset({"FEDMVP_DEBUG", "FEDMVP_CONFIG", "FEDMVP_LOG_LEVEL", "FEDMVP_LOG_FORMAT"})

MAX_PHYSICAL_BATCH = 65536
"""More images at once than any device holds: catches a mistyped number."""

HOST_PATTERN = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"

FilePath = Annotated[Path, Field(strict=False)]


def _endpoint(value: str) -> str:
    split_endpoint(value)
    return value


def _endpoint_or_nothing(value: str) -> str:
    return _endpoint(value) if value else value


def split_endpoint(value: str) -> tuple[str, int]:
    """Return (host, port) of ``host:port`` or ``[address]:port``; ValueError otherwise."""
    host, separator, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    number = int(port) if port.isascii() and port.isdecimal() else -1
    named = re.fullmatch(HOST_PATTERN, host) is not None and "[" not in value
    if not separator or not 0 <= number <= 65535 or not (named or (value.startswith("[") and _is_ipv6(host))):
        raise ValueError("write host:port, for example 127.0.0.1:8443 or [::1]:8443")
    return host, number


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint can only be reached from this machine."""
    host, _ = split_endpoint(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(endpoint: str) -> bool:
    """Whether an endpoint can be bound but not called: 0.0.0.0, [::]; ValueError when it is none at all."""
    try:
        return ipaddress.ip_address(split_endpoint(endpoint)[0]).is_unspecified
    except ValueError:
        split_endpoint(endpoint)
        return False


def _number_or_auto(value: int | str) -> int | str:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= MAX_PHYSICAL_BATCH):
        raise ValueError(f'write a whole number from 1 to {MAX_PHYSICAL_BATCH}, or "auto"')
    return value


Endpoint = Annotated[str, AfterValidator(_endpoint)]


class StudyFiles(Section):
    """[study]: the signed documents, each with its signature, and the key that signed them."""

    policy: FilePath = Field(description="policy.toml")
    policy_signature: FilePath = Field(description="signature of the policy")
    roster: FilePath = Field(description="roster.json")
    roster_signature: FilePath = Field(description="signature of the roster")
    root_key: FilePath = Field(description="public key of the consortium's root")


class ServerSection(Section):
    """[server]: where the server listens and what it keeps."""

    listen: Endpoint = Field(default="127.0.0.1:8443", description="host:port to bind; port 0 takes a free one")
    state_dir: FilePath = Field(description="snapshots, events, audit log")


class ServerIdentity(Section):
    """[identity] of a server."""

    certificate: FilePath = Field(description="TLS certificate in PEM")
    private_key: FilePath = Field(description="its private key in PEM, mode 0600")
    ca: FilePath = Field(description="the consortium's CA certificate")


class EvaluationSection(Section):
    """[evaluation]: the public images on which the server measures accuracy; none by default."""

    images: Annotated[Path | None, Field(strict=False)] = Field(default=None, description="folder of public images")
    manifest: Annotated[Path | None, Field(strict=False)] = Field(default=None, description="CSV list of them")
    batch_size: int = Field(default=64, ge=1, le=4096, description="images at a time")


class ServerConfig(Section):
    """A validated server.toml."""

    server: ServerSection
    identity: ServerIdentity
    study: StudyFiles
    evaluation: EvaluationSection = EvaluationSection()

    _source: Path = PrivateAttr(default=Path())
    _insecure: bool = PrivateAttr(default=False)

    @property
    def source(self) -> Path:
        """The file it was read from."""
        return self._source

    @property
    def insecure(self) -> bool:
        """Whether --insecure was spelled out on the command line (loopback only); no file or variable can set it."""
        return self._insecure


class SiteSection(Section):
    """[site]: who this is."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")] = Field(description="the name in the roster")


class AddressSection(Section):
    """[server] of a site."""

    address: Annotated[str, AfterValidator(_endpoint_or_nothing)] = Field(
        default="", description="host:port of the server; filled in by join"
    )


class ClientIdentity(Section):
    """[identity] of a site."""

    certificate: FilePath = Field(description="TLS certificate in PEM")
    private_key: FilePath = Field(description="its private key in PEM, mode 0600")
    ca: FilePath = Field(description="the consortium's CA certificate")
    signing_key: FilePath = Field(description="the site's Ed25519 identity in PEM, mode 0600")


class DataSection(Section):
    """[data]: the site's images. They are read, never sent."""

    kind: Literal["image-folder", "manifest"] = Field(default="image-folder", description="how they are listed")
    path: FilePath = Field(description="folder with one folder a class, or the CSV manifest")
    dataset_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] = Field(
        description="name of these records in the ledger; the same in every study that uses them"
    )
    require_every_class: bool = Field(default=True, description="refuse to run when a class has no image here")


class LedgerSection(Section):
    """[privacy] of a site: its own limit, whatever a policy says."""

    ledger: FilePath = Field(description="the privacy ledger of this data set")
    epsilon_max: float = Field(gt=0, allow_inf_nan=True, description="most epsilon these records may ever spend")


class ComputeSection(Section):
    """[compute]: what changes speed and nothing else."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = Field(
        default="auto", description="auto, cpu, mps, cuda or cuda:N"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="what the frozen tower computes in"
    )
    channels_last: bool = Field(default=False, description="lay images out with the channels last")
    compile: bool = Field(default=False, description="compile the frozen tower")
    activation_checkpointing: bool = Field(default=False, description="save memory in the tower for time")
    deterministic: bool = Field(default=False, description="the same bits in every run, but for noise and sampling")
    threads: int = Field(default=0, ge=0, le=4096, description="CPU threads; 0 leaves the choice to torch")
    workers: int = Field(default=0, ge=0, le=256, description="threads that decode images; 0 takes one a core")
    cache_dir: FilePath = Field(default=Path("cache"), description="sealed frozen features, attribute banks")
    cache_max_gb: float = Field(default=20.0, ge=0, allow_inf_nan=False, description="most GB of features on disk")
    features_max_gb: float = Field(default=4.0, ge=0, allow_inf_nan=False, description="most GB of features in memory")
    checkpoint: Annotated[Path | None, Field(strict=False)] = Field(
        default=None, description="local weights of the backbone"
    )
    max_physical_batch: Annotated[int | str, AfterValidator(_number_or_auto)] = Field(
        default="auto", description="most images at once through the model; auto takes as many as fit in memory"
    )
    per_sample_engine: Literal["book-keeping", "hooks"] = Field(
        default="book-keeping", description="how gradients are clipped by record"
    )
    memory_limit_gb: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="most memory of the device for this process, in 2^30 bytes; 0 takes what is free",
    )


class StateSection(Section):
    """[state]: what a site must not lose between rounds, apart from the ledger."""

    dir: FilePath = Field(default=Path("state"), description="release marks, the head of the ledger, logs")


class ClientConfig(Section):
    """A validated client.toml."""

    site: SiteSection
    server: AddressSection = AddressSection()
    identity: ClientIdentity
    study: StudyFiles
    data: DataSection
    privacy: LedgerSection
    compute: ComputeSection = ComputeSection()
    state: StateSection = StateSection()

    _source: Path = PrivateAttr(default=Path())
    _insecure: bool = PrivateAttr(default=False)

    @property
    def source(self) -> Path:
        """The file it was read from."""
        return self._source

    @property
    def insecure(self) -> bool:
        """Whether --insecure was spelled out on the command line (loopback only); no file or variable can set it."""
        return self._insecure


Config = TypeVar("Config", ServerConfig, ClientConfig)


def load_server_config(
    path: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    insecure: bool = False,
) -> ServerConfig:
    """Read server.toml.

    Args:
        path: the file.
        overrides: values of flags by "table.key"; None means that the flag was not given.
        environment: where ``FEDMVP_*`` variables are looked up; the process environment by default.
        insecure: whether --insecure was given; refused unless the server listens on loopback.

    Raises:
        UserError: missing, not TOML, an unknown key, a value out of range, or --insecure off loopback.
    """
    config = _load(ServerConfig, path, "fedmvp-server init", overrides, environment)
    if insecure:
        _require_loopback(config.server.listen)
    config._insecure = insecure  # noqa: SLF001 - set once, here
    return config


def load_client_config(
    path: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    insecure: bool = False,
) -> ClientConfig:
    """Read client.toml; arguments and errors as :func:`load_server_config`."""
    config = _load(ClientConfig, path, "fedmvp-client init", overrides, environment)
    if insecure and config.server.address:
        _require_loopback(config.server.address)
    config._insecure = insecure  # noqa: SLF001 - set once, here
    return config


def variable_names(model: type[ServerConfig] | type[ClientConfig]) -> dict[str, tuple[str, str]]:
    """Return the environment variables of a configuration: name to (table, key)."""
    return {_variable(f"{table}.{key}"): (table, key) for table, key, _ in keys(model)}


def _variable(name: str) -> str:
    """The environment variable of "table.key"."""
    return VARIABLE_PREFIX + name.replace(".", "_").upper()


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield ``FEDMVP_*`` variables that mean nothing to either program, with the nearest that does."""
    known = {*variable_names(ServerConfig), *variable_names(ClientConfig), *OTHER_VARIABLES}
    for name in sorted(environment):
        if name.startswith(VARIABLE_PREFIX) and name not in known:
            near = nearest(name.lower(), [item.lower() for item in known])
            yield name, near.upper() if near else None


def _load(
    model: type[Config],
    path: Path,
    maker: str,
    overrides: Mapping[str, Any] | None,
    environment: Mapping[str, str] | None,
) -> Config:
    document = read_document(path, what="configuration", remedy=f"make one with {maker}, or name it with --config")
    values = parse_toml(document, source=str(path))
    base = path.absolute().parent
    _resolve_paths(model, values, base)
    outside = _from_environment(model, os.environ if environment is None else environment)
    flags = {name: value for name, value in (overrides or {}).items() if value is not None}
    origins = {tuple(name.split(".")): _variable(name) for name in outside} | {
        tuple(name.split(".")): "a flag" for name in flags
    }
    for name, value in (outside | flags).items():
        table, key = name.split(".")
        section = values.setdefault(table, {})
        if isinstance(section, dict):
            section[key] = Path(value).absolute() if _is_path(model, table, key) and value != "" else value
    _resolve_defaults(model, values, base)
    config = validate(model, values, source=str(path), text=document.decode("utf-8", "replace"), origins=origins)
    config._source = path.absolute()  # noqa: SLF001 - set once, here
    return config


def _from_environment(model: type[ServerConfig] | type[ClientConfig], environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sections = {(table, key): section for table, key, section in keys(model)}
    for variable, (table, key) in variable_names(model).items():
        raw = environment.get(variable)
        if raw is None or raw == "":
            continue
        field = sections[table, key].model_fields[key]
        found[f"{table}.{key}"] = _number(raw) if _may_be_number(field.annotation) else raw
    return found


def _may_be_number(annotation: Any) -> bool:
    """Whether a field takes numbers: alone, or beside words as ``int | str`` does."""
    return any(kind in (int, float, bool) for kind in (annotation, *get_args(annotation)))


def _number(raw: str) -> Any:
    """A variable's text as TOML would read it; the text itself when it is no number, for the validator to refuse."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _is_path(model: type[ServerConfig] | type[ClientConfig], table: str, key: str) -> bool:
    section = next((section for name, field, section in keys(model) if (name, field) == (table, key)), None)
    return section is not None and section.model_fields[key].annotation in {Path, Path | None}


def _resolve_paths(model: type[ServerConfig] | type[ClientConfig], values: dict[str, Any], base: Path) -> None:
    """Make the paths of a file absolute; "" means that an optional path is not given."""
    for table, key, section in keys(model):
        held = values.get(table)
        if not isinstance(held, dict) or not isinstance(held.get(key), str) or not _is_path(model, table, key):
            continue
        if held[key] == "":
            if section.model_fields[key].annotation == (Path | None):
                held[key] = None
        else:
            held[key] = base / Path(held[key]).expanduser()


def _resolve_defaults(model: type[ServerConfig] | type[ClientConfig], values: dict[str, Any], base: Path) -> None:
    for table, key, section in keys(model):
        default = section.model_fields[key].default
        held = values.setdefault(table, {}) if isinstance(default, Path) else None
        if isinstance(held, dict) and key not in held:
            held[key] = base / default


def _require_loopback(endpoint: str) -> None:
    if not is_loopback(endpoint):
        raise UserError(
            f"--insecure is refused: {endpoint} is not a loopback address",
            remedy="remove --insecure; certificates are made by init and enroll",
            exit_code=ExitCode.IDENTITY,
        )
