"""Empirical audits: lower bounds on epsilon, measured by attacking what this package itself runs.

The accountant proves an upper bound for the mechanism as written down; an audit attacks the mechanism as programmed. A
lower bound above the claimed epsilon shows, at the stated confidence, that the claim is false. A lower bound below it
shows nothing more than that these attacks failed: it never replaces the proof, and no epsilon may be claimed from it.

:func:`audit_mechanism` is the strongest and needs one training; :func:`audit_one_step` needs many steps and no theory
of guessing; :func:`membership_attack` looks at a released model as an outsider would. Importing this loads no torch.
"""

from privacy.audit.bounds import epsilon_lower_bound, epsilon_lower_bound_from_rates
from privacy.audit.canaries import AuditReport, TwoPointReport, audit_mechanism, audit_one_step
from privacy.audit.membership import MembershipReport, membership_attack

__all__ = [
    "AuditReport",
    "MembershipReport",
    "TwoPointReport",
    "audit_mechanism",
    "audit_one_step",
    "epsilon_lower_bound",
    "epsilon_lower_bound_from_rates",
    "membership_attack",
]
