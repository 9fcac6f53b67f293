"""Whatever is sent, the endpoint answers as its own description says, and never with a 500."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

ROUTES = [
    ("POST", "/recommend"),
    ("GET", "/users"),
    ("GET", "/users/{user_id}/history"),
    ("GET", "/users/{user_id}/recommendations"),
    ("GET", "/users/{user_id}/intents"),
    ("GET", "/items"),
    ("GET", "/items/{item_id}/related"),
    ("GET", "/popular"),
    ("GET", "/models"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
REFUSALS = [400, 404, 408, 413, 414, 422]
CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}})
ATTACKS = [(*route, POSITIVE) for route in ROUTES] + [
    (*route, NEGATIVE) for route in ROUTES[:8]
]  # the rest takes nothing


@pytest.fixture(scope="module")
def described(listening):
    return schemathesis.openapi.from_url(f"{listening.url}/openapi.json", config=CONFIG)


def test_every_route_is_described(described):
    assert {(op.method.upper(), op.path) for op in (r.ok() for r in described.get_all_operations())} == set(ROUTES)


def attack(described, method, path, mode, number):
    operation = described[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    def ask(case):
        case.call_and_validate()

    ask()


@pytest.mark.parametrize(("method", "path", "mode"), ATTACKS)
def test_every_route_answers_as_it_is_described(described, method, path, mode):
    attack(described, method, path, mode, 6)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "mode"), ATTACKS)
def test_every_route_answers_as_it_is_described_whatever_is_sent(described, method, path, mode):
    attack(described, method, path, mode, 300)
