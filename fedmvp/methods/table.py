"""The methods by name; a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fedmvp.errors import UserError
from fedmvp.methods.classes import Wording
from fedmvp.methods.fedclip import FedClip
from fedmvp.methods.fedmvp import FedMvp
from fedmvp.methods.fedtpg import FedTpg
from fedmvp.methods.fedvpt import FedVpt
from fedmvp.methods.linear_probe import Probe
from fedmvp.methods.method import Method
from fedmvp.methods.promptfl import PromptFl
from fedmvp.methods.task_residual import TaskResidual
from fedmvp.methods.zero_shot import ZeroShot
from fedmvp.model.prompt_config import PromptConfig, Variant

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "zero-shot-template": ZeroShot(Wording.TEMPLATE),
        "zero-shot-attributes": ZeroShot(Wording.ATTRIBUTES),
        "fedmvp-narrow": FedMvp(PromptConfig(Variant.NARROW)),
        "fedmvp-full": FedMvp(PromptConfig(Variant.FULL)),
        "fedmvp-lora": FedMvp(PromptConfig(Variant.LORA)),
        "fedmvp-probe": FedMvp(PromptConfig(Variant.NARROW, probe_gain=4.0)),
        "promptfl": PromptFl(),
        "fedvpt": FedVpt(),
        "fedclip": FedClip(),
        "fedtpg": FedTpg(),
        "linear-probe": Probe(),
        "task-residual": TaskResidual(),
    }
)
"""Each with its default hyper-parameters; a study replaces what it chooses (`dataclasses.replace`)."""


def method_of(name: str) -> Method:
    """Return the method of a name.

    Raises:
        UserError: there is none; lists those there are.
    """
    if name not in METHODS:
        raise UserError(f"there is no method '{name}'", remedy="choose one of " + ", ".join(METHODS))
    return METHODS[name]
