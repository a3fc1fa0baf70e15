"""The OpenAPI document as a page that needs nothing from other hosts, not even JavaScript."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #222;
       background: #fff }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; background: #f3f3f3 }
code { padding: .1em .3em } pre { padding: .7em; overflow-x: auto }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3em .8em .3em 0;
       vertical-align: top; border-bottom: 1px solid #e4e4e4 }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd } code, pre { background: #2b2b2b }
       a { color: #8ab4f8 } th, td, h2 { border-color: #444 } }
"""
_EXAMPLES = {
    "/v1/segment": "curl -F image=@photo.jpg -F 'expressions=the red circle' -F format=rle {base}/v1/segment",
    "/v1/images": "curl -F image=@photo.jpg {base}/v1/images",
}


def docs_page(document: dict[str, Any], base: str) -> str:
    """The document as HTML.

    Args:
        document: OpenAPI 3.1.
        base: the server's own address, for examples.
    """
    info = document["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info.get('description', ''))}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation, document, base)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _operation(
    path: str, method: str, operation: dict[str, Any], document: dict[str, Any], base: str
) -> list[str]:
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2>",
        f"<p><b>{escape(operation.get('summary', ''))}.</b> {escape(operation.get('description', ''))}</p>",
    ]
    if path in _EXAMPLES:
        parts.append(f"<pre>{escape(_EXAMPLES[path].format(base=base))}</pre>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body as <code>{escape(kind)}</code></h3>{_fields(content['schema'], document)}")
    rows = []
    for status, response in operation["responses"].items():
        rows.append(
            f"<tr><td><code>{escape(status)}</code></td><td>{escape(response['description'])}</td></tr>"
        )
        for content in response.get("content", {}).values():
            if status == "200" and (fields := _fields(content.get("schema", {}), document)):
                rows.append(f"<tr><td></td><td>{fields}</td></tr>")
    parts.append(f"<h3>Responses</h3><table>{''.join(rows)}</table>")
    return parts


def _fields(schema: dict[str, Any], document: dict[str, Any]) -> str:
    rows = "".join(_rows(schema, document, ""))
    return f"<table>{rows}</table>" if rows else ""


def _rows(schema: dict[str, Any], document: dict[str, Any], prefix: str) -> Iterator[str]:
    """A row per field; the fields of a list's items follow it."""
    schema = _resolved(schema, document)
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield (
            f"<tr><td><code>{escape(prefix + name)}</code></td><td>{escape(_kind(field, document))}"
            f"{', required' if name in required else ''}</td><td>{escape(field.get('description', ''))}</td></tr>"
        )
        if "$ref" in field.get("items", {}):
            yield from _rows(field["items"], document, f"{prefix}{name}[].")


def _kind(schema: dict[str, Any], document: dict[str, Any]) -> str:
    """The type of a field in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        kinds = [_kind(option, document) for option in schema["anyOf"]]
        return " or ".join(kind for kind in kinds if kind != "null")
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_kind(item, document) for item in schema['prefixItems'])}]"
        return f"list of {_kind(schema.get('items', {}), document)}"
    if schema.get("format") == "binary":
        return "file"
    return str(schema.get("type", "any"))


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"][name]
    return found
