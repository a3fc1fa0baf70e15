"""The endpoints: what they answer, and what they say to bad input."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from promptris.builtin_models import TINY_NOTE
from promptris.ops.run_lengths import rle_to_mask


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has this size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def asked(scene, **fields):
    return {"image": scene.base64, "expressions": list(scene.expressions[:2]), **fields}


def test_base64_gives_the_predictors_own_answer(client, predictor, scene):
    answer = client.post("/v1/segment", json=asked(scene)).json()
    expected = predictor.set_image(scene.pixels).predict(list(scene.expressions[:2]))
    assert "note" not in answer and len(answer["predictions"]) == 2
    for got, own in zip(answer["predictions"], expected, strict=True):
        assert list(got) == ["expression", "score", "area", "bbox", "point", "segmentation"]
        assert got["expression"] == own.expression and got["score"] == pytest.approx(own.score, abs=1e-4)
        assert (rle_to_mask(got["segmentation"]) != own.mask).sum() <= 2
        assert got["area"] == pytest.approx(own.area, abs=2) and got["point"] == list(own.point)
        assert got["bbox"] == pytest.approx(own.bbox, abs=1)


def test_a_form_gives_the_same(client, scene):
    by_json = client.post("/v1/segment", json=asked(scene)).json()
    by_form = client.post(
        "/v1/segment",
        files={"image": ("x.png", scene.png)},
        data={"expressions": list(scene.expressions[:2])},
    )
    assert by_form.json() == by_json


def test_formats_are_of_the_same_mask(client, scene):
    def segment(format):
        return client.post("/v1/segment", json=asked(scene, format=format)).json()["predictions"][0]

    mask = rle_to_mask(segment("rle")["segmentation"])
    picture = Image.open(io.BytesIO(base64.b64decode(segment("png")["segmentation"])))
    assert picture.mode == "1" and np.array_equal(np.asarray(picture), mask)
    polygon = segment("polygon")
    assert polygon["segmentation"] == [region[0] for region in polygon["regions"]]
    xs, ys = polygon["segmentation"][0][::2], polygon["segmentation"][0][1::2]
    assert min(xs) >= polygon["bbox"][0] and max(ys) <= polygon["bbox"][1] + polygon["bbox"][3]


def test_an_image_is_sent_once_and_asked_about_often(client, predictor, scene):
    for sent in ({"json": {"image": scene.base64}}, {"files": {"image": scene.png}}):
        kept = client.post("/v1/images", **sent).json()
        assert (kept["width"], kept["height"], kept["expires_in"]) == (128, 128, 600)
        body = {"image_id": kept["id"], "expressions": list(scene.expressions[:2])}
        by_id = client.post("/v1/segment", json=body).json()
        assert by_id == client.post("/v1/segment", json=asked(scene)).json()


def test_clicks_box_and_prompts_reach_the_model(client, predictor, scene):
    image, text = predictor.set_image(scene.pixels), scene.expressions[0]
    for guidance in ({"points": [(10, 10, 0), (64, 64, 1)]}, {"box": (8, 8, 60, 60)}, {"prompts": ("text",)}):
        own = image.predict(text, **guidance)
        assert not np.array_equal(own.mask, image.predict(text).mask)
        fields = {name: list(value) for name, value in guidance.items()}
        got = client.post("/v1/segment", json=asked(scene, **fields)).json()["predictions"][0]
        assert (rle_to_mask(got["segmentation"]) != own.mask).sum() <= 2
        if "points" in fields:
            fields["points"] = [",".join(map(str, click)) for click in fields["points"]]
        if "box" in fields:
            fields["box"] = ",".join(map(str, fields["box"]))
        form = client.post("/v1/segment", files={"image": scene.png}, data={"expressions": [text], **fields})
        assert form.json()["predictions"][0] == got


def test_health_models_and_note(serve, scene):
    client = serve(note=TINY_NOTE)
    health = client.get("/v1/health").json()
    assert health["status"] == "ok" and health["model"] == "tiny" and health["waiting"] == 0
    (model,) = client.get("/v1/models").json()["models"]
    assert model["name"] == "tiny" and model["note"] == TINY_NOTE and model["dtype"] == "float32"
    assert client.post("/v1/segment", json=asked(scene)).json()["note"] == TINY_NOTE
    assert client.post("/v1/images", json={"image": scene.base64}).json()["note"] == TINY_NOTE


def test_metrics_count_what_happened(client, scene):
    client.post("/v1/segment", json=asked(scene))
    client.post("/v1/segment", json={})
    client.get("/made/up")
    text = client.get("/metrics").text
    assert 'promptris_requests_total{path="/v1/segment",status="200"} 1.0' in text
    assert 'promptris_requests_total{path="/v1/segment",status="422"} 1.0' in text
    assert 'promptris_requests_total{path="other",status="404"} 1.0' in text and "made" not in text
    assert "promptris_expressions_total 2.0" in text and "promptris_batch_requests_count 1.0" in text
    assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"expressions": []}, 422, ["expressions", "empty"]),
        ({"expressions": [""]}, 422, ["expressions[0]", "empty"]),
        ({"expressions": [" \t\n"]}, 422, ["empty"]),
        ({"expressions": "the circle"}, 422, ["expressions"]),
        ({"expressions": [7]}, 422, ["expressions[0]"]),
        ({"expressions": ["word " * 10_000]}, 422, ["expression 1", "50,000", "1,000"]),
        ({"expressions": ["x"] * 65}, 422, ["65", "64"]),
        ({"format": "svg"}, 422, ["format"]),
        ({"prompts": ["box"]}, 422, ["prompts[0]"]),
        ({"points": [[5, 5, 2]]}, 422, ["points[0][2]"]),
        ({"points": [[500, 5, 1]]}, 422, ["500,5,1", "128 x 128"]),
        ({"box": [0, 0, 500, 5]}, 422, ["128 x 128"]),
        ({"expresions": ["x"]}, 422, ["expresions"]),
        ({"image": None}, 422, ["image_id"]),
        ({"image_id": "x"}, 422, ["one image"]),
        ({"image": "/etc/passwd"}, 422, ["base64"]),
        ({"image": "../../../../etc/hosts"}, 422, ["base64"]),
        ({"image": ""}, 422, ["empty"]),
        ({"image": base64.b64encode(b"no image at all").decode()}, 415, ["not an image"]),
        ({"image": base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode()}, 415, ["not an image"]),
        ({"image": base64.b64encode(png_header(20_000, 20_000)).decode()}, 413, ["pixels"]),
        ({"image": base64.b64encode(png_header(9_000, 9_000)).decode()}, 413, ["9000 x 9000", "50,000,000"]),
        ({"model": "../tiny"}, 404, ["../tiny", "/v1/models"]),
        ({"image": None, "image_id": "../../etc/passwd"}, 404, ["../../etc/passwd", "/v1/images"]),
    ],
)
def test_bad_fields(client, scene, refused, fields, status, words):
    refused(client.post("/v1/segment", json=asked(scene, **fields)), status, *words)
    assert client.get("/v1/health").status_code == 200


def test_bad_bodies(client, scene, refused):
    post = client.post
    json_type = {"content-type": "application/json"}
    refused(post("/v1/segment", content=b"{", headers=json_type), 400, "JSON")
    refused(post("/v1/segment", content=b"\xff\xfe", headers=json_type), 400, "JSON")
    refused(post("/v1/segment", content=b"[" * 100_000, headers=json_type), 400, "JSON")
    refused(post("/v1/segment", content=b"[]", headers=json_type), 422)
    refused(
        post("/v1/segment", content=b'{"image": "\\ud800", "expressions": ["x"]}', headers=json_type), 400
    )
    refused(post("/v1/segment", content=b"x=1"), 415, "application/json")
    refused(post("/v1/segment", data={"expressions": "x"}), 415, "urlencoded")
    refused(post("/v1/images", json={}), 422, "image is missing")
    refused(post("/v1/images", json={"image": scene.base64, "x": 1}), 422, "'x'")
    broken = {"content-type": "multipart/form-data"}
    refused(post("/v1/segment", content=b"--x", headers=broken), 400)
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refused(post("/v1/segment", content=b"--y\r\n\r\n", headers=broken), 400)


def test_bad_forms(client, scene, refused):
    image = {"image": scene.png}

    def post(data, files=image):
        return client.post("/v1/segment", files=files, data=data)

    refused(post({}), 422, "expressions is missing")
    refused(post({"expressions": ["x"], "format": ["rle", "png"]}), 422, "format", "2 times")
    refused(post({"expressions": ["x"], "points": "1,2"}), 422, "'1,2'", "X,Y,LABEL")
    refused(post({"expressions": ["x"], "points": "1,2,7"}), 422, "points")
    refused(post({"expressions": ["x"], "points": "nan,2,1"}), 422, "points")
    refused(post({"expressions": ["x"], "box": "a"}), 422, "'a'", "X,Y,WIDTH,HEIGHT")
    refused(post({"expressions": ["x"]}, {"picture": scene.png}), 422, "'picture'")
    refused(post({"expressions": ["x"]}, [("image", scene.png), ("image", scene.png)]), 400)
    refused(post({"expressions": ["x"], "image": "photo.jpg"}, {"x": b""}), 422)
    refused(client.post("/v1/images", files={"photo": scene.png}), 422, "'photo'")


def test_names_of_files_are_nobodys_business(client, scene):
    for name in ("../../../etc/passwd", "a\\..\\b.png", "\x00", "x" * 300, "кот 🐈.png"):
        answer = client.post(
            "/v1/segment", files={"image": (name, scene.png)}, data={"expressions": [scene.expressions[0]]}
        )
        assert answer.status_code == 200, answer.text


def test_truncated_images(client, refused, scene, as_file):
    refused(client.post("/v1/images", files={"image": scene.png[: len(scene.png) // 2]}), 422, "cut off")
    jpeg = as_file(Image.fromarray(scene.pixels), "JPEG")
    refused(client.post("/v1/images", files={"image": jpeg[: len(jpeg) // 2]}), 422, "cut off")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_and_a_single_pixel(client, mode, as_file):
    for size in ((1, 1), (40, 30)):
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        if mode == "I;16":
            picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
        else:
            picture = Image.fromarray(noise).convert(mode)
        data = as_file(picture, "TIFF" if mode == "CMYK" else "PNG")
        body = {"image": base64.b64encode(data).decode(), "expressions": ["the red circle"]}
        answer = client.post("/v1/segment", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["segmentation"]["size"] == [size[1], size[0]]


def test_cameras_orientation_is_heeded(client, scene, as_file):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = as_file(Image.fromarray(scene.pixels[:64]), "JPEG", exif=exif)
    kept = client.post("/v1/images", files={"image": picture}).json()
    assert (kept["width"], kept["height"]) == (64, 128)


@pytest.mark.parametrize(
    "text", ["红色的圆", "κόκκινος κύκλος", "الدائرة", "🔴⭐", "e\u0301\u0301", "\x00", "<b>&'\""]
)
def test_any_script_is_answered(client, scene, text):
    answer = client.post("/v1/segment", json=asked(scene, expressions=[text]))
    assert answer.status_code == 200 and answer.json()["predictions"][0]["expression"] == text
    form = client.post("/v1/segment", files={"image": scene.png}, data={"expressions": [text]})
    assert form.json() == answer.json()


def test_what_is_not_read_to_its_end_is_told(client, scene):
    long = " ".join(["the red circle"] * 40)
    answer = client.post("/v1/segment", json=asked(scene, expressions=["the star", long])).json()
    assert "expression 2 has 120 tokens" in answer["note"]


def test_other_paths_and_methods(client, refused):
    refused(client.get("/v1/nothing"), 404, "/v1/nothing")
    refused(client.get("/nothing"), 404, "/docs")
    refused(client.get("/v1/../../etc/passwd"), 404)
    answer = client.get("/v1/segment")
    refused(answer, 405, "/v1/segment", "GET")
    assert answer.headers["allow"] == "POST"
    refused(client.request("TRACE", "/v1/health"), 405)
    refused(client.post("/metrics"), 405)


def test_an_unexpected_error_tells_nothing_of_the_inside(client, scene, refused, monkeypatch, caplog):
    def explode(*args):
        raise RuntimeError("secret /path")

    monkeypatch.setattr("promptris.serving.routes.describe", explode)
    sentence = refused(client.post("/v1/segment", json=asked(scene)), 500, "log")
    assert "secret" not in sentence
    monkeypatch.undo()
    assert client.post("/v1/segment", json=asked(scene)).status_code == 200


def test_json_of_the_answer_is_plain(client, scene):
    answer = client.post("/v1/segment", json=asked(scene))
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content) == answer.json()
