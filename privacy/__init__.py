"""Differential privacy at a site: mechanisms, accounting, the durable ledger and the DP-SGD engine.

This package knows any ``nn.Module`` and no CLIP, no network and no federation. Importing it loads neither torch nor an
accounting library; :mod:`privacy.dpsgd` is the one module that needs torch and is imported by name.
"""

from privacy.accountant import ACCOUNTANT, calibrate_noise_multiplier, epsilon, epsilon_prv, epsilon_rdp
from privacy.errors import (
    AlreadyReleased,
    AttemptReplayed,
    BudgetExceeded,
    LedgerCorrupt,
    LedgerError,
    LedgerExists,
    LedgerLocked,
    LedgerMissing,
    LedgerRolledBack,
    LedgerUnreachable,
    LedgerVersionUnknown,
    LedgerWriteFailed,
    NotDecomposable,
    PrivacyError,
    PrivacyRefused,
    TokenSpent,
)
from privacy.ledger import Ledger, LedgerEntry, PrivacySpent
from privacy.mechanism import ADD_OR_REMOVE_ONE, Mode, PrivacyParameters, SubsampledGaussian
from privacy.receipt import PrivacyReceipt, make_receipt
from privacy.token import ReleaseToken

__all__ = [
    "ACCOUNTANT",
    "ADD_OR_REMOVE_ONE",
    "AlreadyReleased",
    "AttemptReplayed",
    "BudgetExceeded",
    "Ledger",
    "LedgerCorrupt",
    "LedgerEntry",
    "LedgerError",
    "LedgerExists",
    "LedgerLocked",
    "LedgerMissing",
    "LedgerRolledBack",
    "LedgerUnreachable",
    "LedgerVersionUnknown",
    "LedgerWriteFailed",
    "Mode",
    "NotDecomposable",
    "PrivacyError",
    "PrivacyParameters",
    "PrivacyReceipt",
    "PrivacyRefused",
    "PrivacySpent",
    "ReleaseToken",
    "SubsampledGaussian",
    "TokenSpent",
    "calibrate_noise_multiplier",
    "epsilon",
    "epsilon_prv",
    "epsilon_rdp",
    "make_receipt",
]
