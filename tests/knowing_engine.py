"""An engine that answers with the kinds of a model's code that it may run."""

from lfx_local_runtimes.runtimes.base import LoadContext
from lfx_local_runtimes.runtimes.engines.registry import EngineRow
from lfx_local_runtimes.runtimes.planning import LoadPlan
from lfx_local_runtimes.runtimes.testing import ScriptedRuntime
from lfx_local_runtimes.runtimes.trust.report import PICKLE, REMOTE_CODE


class Knowing(ScriptedRuntime):
    """Answers every prompt so."""

    engine = "knowing"

    def _load(self, plan: LoadPlan, context: LoadContext) -> None:
        super()._load(plan, context)
        self.script = [f"{kind} " for kind in (REMOTE_CODE, PICKLE) if context.may_run(kind)] or ["nothing"]


ROW = EngineRow(Knowing.engine, f"{__name__}:Knowing")
