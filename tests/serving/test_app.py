"""The OpenAPI document, held against what the application does; and the page at /docs."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")

OPERATIONS = [
    ("GET", "/v1/health"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("POST", "/v1/images"),
    ("POST", "/v1/segment"),
]
# Whether base64 is an image, and whether a click lies in it, no schema can say.
FITS_NOT = ["2xx", "404", "413", "415", "422"]


@pytest.fixture(scope="module")
def document(predictor):
    """The document of an application, with the application behind it."""
    from promptris.serving.app import create_app

    config = schemathesis.Config.from_dict(
        {"checks": {"positive_data_acceptance": {"expected-statuses": FITS_NOT}}}
    )
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(predictor), config=config)


def hold(document, method, path, scene, examples, mode):
    """Requests made from the document, right or wrong ones: every response has to be as the document says."""
    operation = document[path][method]
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=strategy, with_image=st.booleans())
    def check(case, with_image):
        if with_image and mode.is_positive and isinstance(case.body, dict) and "image" in case.body:
            in_json = case.media_type == "application/json"
            case.body["image"] = base64.b64encode(scene.png).decode() if in_json else scene.png
        case.call_and_validate()

    check()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_right_requests(document, scene, method, path):
    hold(document, method, path, scene, 12, schemathesis.GenerationMode.POSITIVE)


@pytest.mark.parametrize(("method", "path"), OPERATIONS[3:])
def test_wrong_requests(document, scene, method, path):
    hold(document, method, path, scene, 20, schemathesis.GenerationMode.NEGATIVE)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS[3:])
def test_many_requests(document, scene, method, path):
    for mode in schemathesis.GenerationMode:
        hold(document, method, path, scene, 300, mode)


def test_the_document_knows_every_operation(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert found == set(OPERATIONS)
    for method, path in OPERATIONS[3:]:
        operation = document["paths"][path][method.lower()]
        assert set(operation["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        assert {"200", "400", "408", "413", "415", "422", "429", "500", "504"} <= set(operation["responses"])
        assert "Retry-After" in operation["responses"]["429"]["headers"]


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.targets = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("href", "src")]


def test_the_page_needs_no_other_host(client):
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    links = Links()
    links.feed(page.text)
    assert links.targets == ["openapi.json"] and "script" not in links.tags
    for _, path in OPERATIONS:
        assert path in page.text
    assert re.search(r"curl .*http://testserver/v1/segment", page.text)
    for field in ("expressions", "image_id", "predictions[].segmentation", "expires_in"):
        assert f"<code>{field}</code>" in page.text
