"""A run's configuration: a recipe file plus flags, validated into one RunConfig.

Strict: an unknown key is an error that names the nearest known one.
"""

from harness.config.problems import ELSEWHERE
from harness.config.recipe import (
    TASK_DIRS,
    changed,
    load,
    parse_setting,
    recipe_names,
    validated,
)
from harness.config.run_config import Row, RunConfig, meanings
from harness.config.sections import (
    LATER,
    NO_EFFECT,
    OF_THE_RUN,
    AlignmentConfig,
    ClassRecord,
    CodeConfig,
    JudgingConfig,
    LoraConfig,
    RayConfig,
    ResponsesConfig,
    SafetyConfig,
    Section,
    TaskRecord,
    TrainingConfig,
    UtilitySet,
    VariantConfig,
)
from harness.config.values import BY_TASK, put

__all__ = [
    "BY_TASK",
    "ELSEWHERE",
    "LATER",
    "NO_EFFECT",
    "OF_THE_RUN",
    "TASK_DIRS",
    "AlignmentConfig",
    "ClassRecord",
    "CodeConfig",
    "JudgingConfig",
    "LoraConfig",
    "RayConfig",
    "ResponsesConfig",
    "Row",
    "RunConfig",
    "SafetyConfig",
    "Section",
    "TaskRecord",
    "TrainingConfig",
    "UtilitySet",
    "VariantConfig",
    "changed",
    "load",
    "meanings",
    "parse_setting",
    "put",
    "recipe_names",
    "validated",
]  # fmt: skip
