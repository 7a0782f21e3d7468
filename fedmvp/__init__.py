"""Federated, private prompt tuning of vision-language models."""

__version__ = "0.1.0"
