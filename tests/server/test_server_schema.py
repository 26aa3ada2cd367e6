"""Requests made from the server's own description of what it takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from live_server import Live

from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.web.description import describe

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = [
    result.ok() for result in schemathesis.openapi.from_dict(describe()).get_all_operations()
]


@pytest.fixture(scope="module")
def server_settings() -> ServerSettings:
    return ServerSettings(max_tokens=8)


# Names of their own, or tests that run in several processes would be taken for one.
@pytest.mark.parametrize("operation", OPERATIONS, ids=[one.label for one in OPERATIONS])
def test_every_request_is_answered_as_described(operation: Any, live: Live) -> None:
    @given(case=operation.as_strategy())
    @settings(
        max_examples=12,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        case.call_and_validate(base_url=live.url, checks=CHECKS, timeout=20)

    check()


def test_the_description_names_every_field(live: Live) -> None:
    schemas = describe()["components"]["schemas"]
    assert "top_logprobs" in schemas["ChatRequest"]["properties"]
    assert schemas["ChatRequest"]["additionalProperties"] is False
