"""Find the best way to fine-tune a pretrained image backbone on a data set, and show the evidence.

What is listed in `__all__` is the public API, for plugins and for scripts. Names are imported when they are
first used, so that `import harness` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from harness.config import StudyConfig
    from harness.errors import (
        DataError,
        HarnessError,
        NoTrialSucceeded,
        PluginError,
        StorageError,
        UnknownNameError,
        UsageError,
        WeightsError,
    )
    from harness.hookspecs import hookimpl
    from harness.leaderboard.rank import Leaderboard, rank
    from harness.records import (
        ProbeRecord,
        StudyView,
        TrialConfig,
        TrialRecord,
        read_record,
        read_records,
    )
    from harness.registry import Registry, load_registry
    from harness.search.result import StudyResult
    from harness.search.study import run_study
    from harness.specs import (
        AugmentationSpec,
        BackboneSpec,
        ClassInfo,
        DatasetSpec,
        Family,
        InputSpec,
        LossSpec,
        OptimizerSpec,
        ParamGroup,
        Sample,
        ScheduleSpec,
        WeightsSpec,
    )
    from harness.text import safe_text

_HOMES = {
    "harness.config": ["StudyConfig"],
    "harness.errors": [
        "DataError",
        "HarnessError",
        "NoTrialSucceeded",
        "PluginError",
        "StorageError",
        "UnknownNameError",
        "UsageError",
        "WeightsError",
    ],
    "harness.hookspecs": ["hookimpl"],
    "harness.leaderboard.rank": ["Leaderboard", "rank"],
    "harness.records": [
        "ProbeRecord",
        "StudyView",
        "TrialConfig",
        "TrialRecord",
        "read_record",
        "read_records",
    ],
    "harness.registry": ["Registry", "load_registry"],
    "harness.search.result": ["StudyResult"],
    "harness.search.study": ["run_study"],
    "harness.specs": [
        "AugmentationSpec",
        "BackboneSpec",
        "ClassInfo",
        "DatasetSpec",
        "Family",
        "InputSpec",
        "LossSpec",
        "OptimizerSpec",
        "ParamGroup",
        "Sample",
        "ScheduleSpec",
        "WeightsSpec",
    ],
    "harness.text": ["safe_text"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AugmentationSpec",
    "BackboneSpec",
    "ClassInfo",
    "DataError",
    "DatasetSpec",
    "Family",
    "HarnessError",
    "InputSpec",
    "Leaderboard",
    "LossSpec",
    "NoTrialSucceeded",
    "OptimizerSpec",
    "ParamGroup",
    "PluginError",
    "ProbeRecord",
    "Registry",
    "Sample",
    "ScheduleSpec",
    "StorageError",
    "StudyConfig",
    "StudyResult",
    "StudyView",
    "TrialConfig",
    "TrialRecord",
    "UnknownNameError",
    "UsageError",
    "WeightsError",
    "WeightsSpec",
    "__version__",
    "hookimpl",
    "load_registry",
    "rank",
    "read_record",
    "read_records",
    "run_study",
    "safe_text",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
