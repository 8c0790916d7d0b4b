"""Does a model look at the defect? The audit as a flow, for a model that is to be approved or a monthly check.

python -m flows.audit_model tile.bundle parts.csv audits/tile
"""

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import TypeAdapter

from flows.common import leave_behind, tried_again
from inspect_xai import app
from inspect_xai.audit.run import AuditSettings
from inspect_xai.settings import load_settings


@flow(name="audit-model")
def audit_model(
    bundle: str, manifest: str, out: str, db: str | None = None, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Audit a model; a run that was cut short goes on where it ended when it is started again.

    Args:
        bundle: The bundle folder.
        manifest: CSV of pictures: image,label[,mask][,boxes][,part][,station].
        out: Folder for the report.
        db: Database to keep the numbers in, beside the model.
        options: Further options of `inspect-xai audit` by name, as {"methods": "sise,grad-cam", "sample": 200}.
    """
    measure(bundle, manifest, out, db, options or {})
    answer: dict[str, Any] = json.loads((Path(out) / "audit.json").read_text(encoding="utf-8"))["answer"]
    said = f"Looks at the defect: **{answer['answer']}** ({'; '.join(answer['reasons'])})"
    leave_behind("audit-model", answer | {"page": (Path(out) / "report.html").absolute()}, summary=said)
    return answer


@tried_again("measure")
def measure(bundle: str, manifest: str, out: str, db: str | None, options: dict[str, Any]) -> None:
    """Audit the model; an answer of "no" is no failure of the flow."""
    chosen = load_settings(db=db)
    run = {name: options[name] for name in ("device", "threads") if name in options}
    how = {name: value for name, value in options.items() if name not in (*run, "methods", "every")}
    if "methods" in options:
        how["methods"] = [name.strip() for name in options["methods"].split(",")]
    how |= {"only_right": not options.get("every", False), "limits": chosen.line.limits}
    settings = TypeAdapter(AuditSettings).validate_python(how)
    keep_in = chosen if db is not None else None
    app.audit_model(Path(bundle), Path(manifest), Path(out), settings=settings, keep_in=keep_in, **run)


if __name__ == "__main__":
    audit_model(*sys.argv[1:4])
