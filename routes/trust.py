"""Code that comes with models, over REST: look at it, approve it, revoke that. Endpoints run in a thread."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lfx_local_runtimes.errors import NotAllowed
from lfx_local_runtimes.routes.access import Caller, KnownCaller, Manager, PathName
from lfx_local_runtimes.routes.faults import FaultRoute
from lfx_local_runtimes.runtimes.trust.report import CodeReport
from lfx_local_runtimes.runtimes.trust.review import Review, Reviewer

router = APIRouter(route_class=FaultRoute)


class CodeFinding(BaseModel):
    """One notable thing that a file names or calls."""

    group: str
    what: str
    file: str
    lines: list[int]


class CodePart(BaseModel):
    """The code of one kind: `remote_code` (Python files) or `pickle` (weights)."""

    kind: str
    sha256: str
    """Empty if it cannot be checked; see `problems`."""
    approved: bool
    files: list[str]
    imports: list[str]
    findings: list[CodeFinding]
    problems: list[str]

    @classmethod
    def of(cls, report: CodeReport, approved: bool) -> "CodePart":
        """The JSON form of a report."""
        findings = [
            CodeFinding(group=one.group, what=one.what, file=one.file, lines=list(one.lines)) for one in report.findings
        ]
        return cls(
            kind=report.kind, sha256=report.sha256, approved=approved, files=list(report.files),
            imports=list(report.imports), findings=findings, problems=list(report.problems),
        )  # fmt: skip


class ModelCode(BaseModel):
    """The code that comes with a model; `code` is empty if there is none."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    revision: str
    """`org/name@commit`, or the folder's path."""
    code: list[CodePart]

    @classmethod
    def of(cls, review: Review) -> "ModelCode":
        """The JSON form of a review."""
        parts = [CodePart.of(report, report.sha256 in review.approved) for report in review.reports]
        return cls(model_name=review.config.model_name, revision=review.source, code=parts)


class TrustBody(BaseModel):
    """Which code is approved: the SHA-256 that `GET models/{name}/code` reports now."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="As `GET models/{name}/code` reports it now."
    )


class Revoked(BaseModel):
    """How many approvals were taken back."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    revoked: int


@router.get("/models/{model_name:any_text}/code")
def model_code(model_name: PathName, manager: Manager) -> ModelCode:
    """The code that comes with a model, as a static scan sees it: files, imports, notable calls. Runs nothing of it."""
    return ModelCode.of(Reviewer(manager.catalog).look(model_name))


@router.post("/models/{model_name:any_text}/trust")
def trust_model(model_name: PathName, body: TrustBody, manager: Manager, caller: KnownCaller) -> ModelCode:
    """Approve a model's code as it is now. 409 if the SHA-256 is not that of its code. For superusers only."""
    reviewer = Reviewer(manager.catalog)
    _require(caller, reviewer, model_name)
    return ModelCode.of(reviewer.approve(model_name, body.sha256, caller.name))


@router.delete("/models/{model_name:any_text}/trust")
def distrust_model(model_name: PathName, manager: Manager, caller: KnownCaller) -> Revoked:
    """Take back the approval of a model's code. A model in memory stays until it is unloaded. For superusers only."""
    reviewer = Reviewer(manager.catalog)
    _require(caller, reviewer, model_name)
    return Revoked(model_name=model_name, revoked=len(reviewer.revoke(model_name, caller.name)))


def _require(caller: Caller, reviewer: Reviewer, model_name: str) -> None:
    if caller.denied:
        message = f"You may not decide about the code of {model_name}."
        reviewer.refused(model_name, caller.name, f"{message} {caller.denied}")
        raise NotAllowed(message, model_name=model_name, hint=caller.denied)
