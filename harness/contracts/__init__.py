"""The contracts between the harness and its plugins: data, methods, train tasks, judges.

Standard library only (harness.finish and harness.text are that, too), so that a plugin's author can read the
whole of it in a sitting and import it for nothing. Tensors appear as ``Any``: the shapes are in the comments.
Rates are fractions in [0, 1] all through the code and become percentages only where they are printed.
Plugins import from here, whichever module a contract is in.
"""

from __future__ import annotations

from harness.contracts.data import Example, Message, Rewrite, Role, TrainTask
from harness.contracts.errors import HarnessError, NotFetchedError, UsageError
from harness.contracts.judge import (
    REFUSED_TO_JUDGE,
    Budget,
    Exchange,
    Judge,
    JudgeContext,
    JudgedScope,
    JudgeModel,
    JudgePendingError,
    JudgeSettings,
    Label,
    Verdict,
    threshold,
)
from harness.contracts.method import (
    Encoded,
    Generate,
    LossInputs,
    Method,
    ModelRef,
    OtherModel,
    PrepareContext,
    SafetyGradient,
    TrainContext,
    model_refs,
)

__all__ = [
    "REFUSED_TO_JUDGE",
    "Budget",
    "Encoded",
    "Example",
    "Exchange",
    "Generate",
    "HarnessError",
    "Judge",
    "JudgeContext",
    "JudgeModel",
    "JudgePendingError",
    "JudgeSettings",
    "JudgedScope",
    "Label",
    "LossInputs",
    "Message",
    "Method",
    "ModelRef",
    "NotFetchedError",
    "OtherModel",
    "PrepareContext",
    "Rewrite",
    "Role",
    "SafetyGradient",
    "TrainContext",
    "TrainTask",
    "UsageError",
    "Verdict",
    "model_refs",
    "threshold",
]
