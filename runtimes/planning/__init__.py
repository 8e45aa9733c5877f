"""From a configuration and a model's files to the loads worth trying. It knows no engine by name.

`rules` name the engines for the files. Each engine makes an `Offer`. `plans` puts the offers in order. `estimates` are the
formulas that offers count memory with.
"""

from lfx_local_runtimes.runtimes.planning.estimates import DEFAULT_CONTEXT, MemoryEstimate, estimate_memory
from lfx_local_runtimes.runtimes.planning.inspection import Inspection, inspect_model
from lfx_local_runtimes.runtimes.planning.load_plan import Considered, LoadPlan, Refusal
from lfx_local_runtimes.runtimes.planning.offers import MakeOffer, Offer, Terms, default_offer
from lfx_local_runtimes.runtimes.planning.plans import (
    check_task,
    consider_loads,
    plan_for_engine,
    plan_loads,
    task_of_model,
)
from lfx_local_runtimes.runtimes.planning.rules import Rules

__all__ = [
    "DEFAULT_CONTEXT",
    "Considered",
    "Inspection",
    "LoadPlan",
    "MakeOffer",
    "MemoryEstimate",
    "Offer",
    "Refusal",
    "Rules",
    "Terms",
    "check_task",
    "consider_loads",
    "default_offer",
    "estimate_memory",
    "inspect_model",
    "plan_for_engine",
    "plan_loads",
    "task_of_model",
]
