"""What judges share in one command: themselves, the budget, one loaded model at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.contracts import Budget, Judge, JudgeModel, JudgeSettings
from harness.judging import models
from harness.judging.cache import VerdictCache
from harness.models import checkpoints
from harness.plugins import plugin_files, registry

if TYPE_CHECKING:
    from harness.run.context import RunContext


def settings(config: RunConfig) -> JudgeSettings:
    section = config.judging
    return JudgeSettings(
        rubric=section.rubric,
        threshold=section.threshold,
        prompt_files=section.prompt_files,
        in_flight=section.in_flight,
        timeout_s=section.timeout_s,
        attempts=section.attempts,
        batch=section.mode == "batch",
        prices=section.prices,
    )


class JudgeSession:
    """What judges share in one command: themselves, the budget, one loaded model at a time, what is kept by
    content, and a count of what happened (by judge)."""

    def __init__(self, ctx: RunContext):
        self.ctx, self.budget = ctx, Budget(ctx.config.judging.max_cost)
        self.retry_unjudged = False
        self.anew = False  # nothing that is known of verdicts counts: no marker, journal or cache
        self.handed_on: set[str] = set()  # exchanges in batches that are not back yet
        self.tally: dict[str, Counter[str]] = {}
        self._judges: dict[str, Judge] = {}
        self._weights: dict[str, dict[str, str]] = {}
        self._loaded: tuple[str, models.LoadedModel] | None = None

    def judge(self, name: str) -> Judge:
        if name not in self._judges:
            self._judges[name] = registry.make_judge(name, settings(self.ctx.config))
        return self._judges[name]

    def check(self, names: Sequence[str]) -> list[str]:
        """Whether the judges can work, before anything is spent; lines to show."""
        return [line for name in names if (line := self.judge(name).check())]

    def describe(self, name: str) -> dict[str, Any]:
        """What a judge and the settings say of its verdicts."""
        judge, section = self.judge(name), self.ctx.config.judging
        of_model = {"engine": section.engine, "dtype": section.dtype} if judge.model is not None else {}
        return judge.identity() | of_model | plugin_files.sha256("judge", registry.judge_parts(name)[0])

    def identity(self, name: str) -> dict[str, Any]:
        """All that a judge's verdicts depend on, but for the exchange and the scope."""
        found, model = self.describe(name), self.judge(name).model
        if model is not None:
            if model not in self._weights:
                self._weights[model] = checkpoints.fingerprint(checkpoints.locate(model))
            found |= {"weights": self._weights[model]}
        return found

    def load_model(self, name: str) -> JudgeModel:
        """A judge's weights; those of the judge before have left the device."""
        if self._loaded is None or self._loaded[0] != name:
            self.release()
            section = self.ctx.config.judging
            model = models.load(
                checkpoints.locate(name), section.engine, section.dtype, self.ctx.device, section.batch_size
            )
            self._loaded = name, model
        return self._loaded[1]

    def release(self) -> None:
        if self._loaded:
            self._loaded[1].close()
            self._loaded = None

    @cached_property
    def verdict_cache(self) -> VerdictCache:
        return VerdictCache(self.ctx.cache.folder)


def find_changed(before: JudgeSession, now: JudgeSession, judges: Sequence[str]) -> list[str]:
    """Those of the judges whose verdicts the settings of ``now`` would change."""
    scopes = [session.ctx.config.safety.judged_scope for session in (before, now)]
    return [name for name in judges if scopes[0] != scopes[1] or before.describe(name) != now.describe(name)]
