"""The settings of the paper and the numbers each of them reports (Singha et al. 2025, section 4).

- Base to new: every site has classes of its own. Local is the mean over sites of the accuracy among the site's classes,
  Base the accuracy among all trained classes, New that among classes nobody trained on; HM is the harmonic mean of the
  three.
- Domains: several source domains and one target, or one and several; what counts is a target's accuracy.
- Personalised: the accuracy at each site, and the worst of them.

Only for images that no site owns. An accuracy on the images of a site is a release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmvp.evaluation.accuracy import Accuracy


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of shares in [0, 1]; zero if one of them is.

    Raises:
        ValueError: no values, or one below zero.
    """
    if not values or min(values) < 0:
        raise ValueError("a harmonic mean needs values of at least zero")
    if min(values) == 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


@dataclass(frozen=True)
class BySite:
    """Accuracy at every site.

    Attributes:
        sites: by the name of the site, at least one.
    """

    sites: Mapping[str, Accuracy]

    def __post_init__(self) -> None:
        if not self.sites:
            raise ValueError("there is no site to report")

    @property
    def mean(self) -> float:
        """The mean over sites; a small site counts as much as a large one."""
        return sum(accuracy.value for accuracy in self.sites.values()) / len(self.sites)

    @property
    def worst(self) -> tuple[str, Accuracy]:
        """The site with the lowest accuracy."""
        return min(self.sites.items(), key=lambda item: item[1].value)


@dataclass(frozen=True)
class BaseToNew:
    """One run of the base-to-new setting.

    Attributes:
        local: each site's accuracy among its own classes.
        base: among all trained classes.
        new: among classes nobody trained on.
    """

    local: BySite
    base: Accuracy
    new: Accuracy

    @property
    def harmonic_mean(self) -> float:
        """HM of Local, Base and New."""
        return harmonic_mean([self.local.mean, self.base.value, self.new.value])


@dataclass(frozen=True)
class Domains:
    """One run of a setting of domains, or of the cross-dataset one with data sets in place of domains.

    Attributes:
        targets: accuracy by target, none of which was trained on; at least one.
        sources: the domains that were trained on.
    """

    targets: Mapping[str, Accuracy]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("there is no target to report")
        if trained := [name for name in self.targets if name in self.sources]:
            raise ValueError(f"'{trained[0]}' is a source and cannot be a target")

    @property
    def mean(self) -> float:
        """The mean over targets; a small one counts as much as a large one."""
        return sum(accuracy.value for accuracy in self.targets.values()) / len(self.targets)


def share_of_gain(private: float, plain: float, floor: float) -> float:
    """Return which part of the gain over zero-shot is left under privacy; 1 is all of it, below 0 is a loss.

    Args:
        private: metric at some epsilon.
        plain: the same without privacy.
        floor: the same of zero-shot CLIP.

    Raises:
        ValueError: without privacy there is no gain to share.
    """
    if plain <= floor:
        raise ValueError("training without privacy does not gain over zero-shot: there is no gain to keep a share of")
    return (private - floor) / (plain - floor)
