"""Vanilla fine-tuning: cross-entropy on the answer (LookAhead Tuning, eq. 1). All methods differ from it."""

from dataclasses import dataclass

from harness.contracts import Method


@dataclass
class Vanilla(Method):
    name = "vanilla"
    summary = "plain supervised fine-tuning on the answer's tokens"
