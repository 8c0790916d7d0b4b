"""The JSON interface keeps what its description promises, whatever is sent: examples drawn from the OpenAPI itself."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.support import desk_inspections as making
from inspect_xai.settings import ServeSettings
from inspect_xai.web.app import create_app
from tests.support.desk import people_file

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'inspect-xai[test]': no example was drawn")
OPERATIONS = (
    "GET /api/v1/inspections",
    "GET /api/v1/inspections/{inspection_id}",
    "GET /api/v1/inspections/{inspection_id}/map",
    "GET /api/v1/inspections/{inspection_id}/reviews",
    "POST /api/v1/inspections/{inspection_id}/reviews",
    "GET /api/v1/queue",
    "GET /api/v1/parts/{serial}",
    "GET /api/v1/models",
    "GET /api/v1/reasons",
)
_AS_OTTO = {"Authorization": "Bearer token of Otto"}


@pytest.fixture(scope="module")
def schema(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("schema")
    shutil.copy(sqlite_template, folder / "desk.db")
    url = f"sqlite:///{folder}/desk.db"
    making.filled(url, folder / "archive", flagged=3, good=1)
    given_ = ServeSettings(
        archive=(folder / "archive",), people=people_file(folder), requests_per_minute=1_000_000, hosts=("testserver",)
    )
    app = create_app(url, given_)
    read = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=_AS_OTTO)
    read.config.generation.update(with_security_parameters=False)  # every request is sent with Otto's token
    yield read
    app.state.site.store.close()


def test_every_operation_is_tried(schema: Any) -> None:
    found = {f"{each.ok().method.upper()} {each.ok().path}" for each in schema.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_are_as_described(schema: Any, operation: str, mode: str) -> None:
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    method, path = operation.split()
    if mode == "negative" and path.rpartition("/")[2] in ("models", "reasons"):
        return  # they take nothing that could be wrong
    # What an answer may say rests on the plant's reasons, the model's labels and the picture's size too.
    excluded = [positive_data_acceptance] if method == "POST" else []

    @given(case=schema[path][method].as_strategy(generation_mode=GenerationMode(mode)))
    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def holds(case: Any) -> None:
        case.call_and_validate(headers=_AS_OTTO, excluded_checks=excluded)

    holds()
