"""Description of the service: OpenAPI for programs, plain text for people."""

from __future__ import annotations

from typing import Any

from stages.tools.serving.limits import MAX_ROWS

#: Content type of requests and responses.
MEDIA_TYPE = "application/json"


def openapi(keyed: bool) -> dict[str, Any]:
    """Describe the service as OpenAPI 3.1."""
    from stages.tools.serving.requests import QuestionRow

    row = QuestionRow.model_json_schema()
    # As it is sent: the bytes are text there.
    row["properties"]["video_base64"] = {
        "type": ["string", "null"],
        "contentEncoding": "base64",
        "description": "The bytes of a file.",
    }
    row["oneOf"] = [{"required": ["video"]}, {"required": ["video_base64"]}]
    text = {"type": ["string", "null"]}
    answer = {
        "type": "object",
        "properties": {
            "thinking": text,
            "answer": text,
            "reply": {"type": "string"},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["reply"],
    }
    refusal = {"type": "object", "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}}}

    def holding(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {MEDIA_TYPE: {"schema": schema}}}

    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}, "minItems": 1, "maxItems": MAX_ROWS}
    request = {"type": "object", "properties": {"dataframe_records": rows}, "required": ["dataframe_records"]}
    answers = {"type": "object", "properties": {"predictions": {"type": "array", "items": answer}}}
    statuses = {
        "400": "Something about the request is wrong.",
        "401": "The key is missing or wrong.",
        "408": "The body did not come.",
    }
    statuses |= {
        "403": "Host or Origin is another's.",
        "413": "Too large.",
        "415": "Not JSON.",
        "503": "Busy; see Retry-After.",
    }
    statuses |= {"500": "A fault of the server.", "504": "Not done in time."}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Questions about videos", "version": "1"},
        "paths": {
            "/invocations": {
                "post": {
                    "summary": "Answer questions about videos",
                    "requestBody": {"required": True, **holding(request)},
                    "responses": {
                        "200": {"description": "One answer a row.", **holding(answers)},
                        **{
                            status: {"description": why, **holding(refusal)} for status, why in sorted(statuses.items())
                        },
                    },
                }
            },
            "/ping": {"get": {"summary": "Whether it answers", "responses": {"200": {"description": "It does."}}}},
        },
        "components": {"schemas": {"Row": row}},
    }
    if keyed:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["paths"]["/invocations"]["post"]["security"] = [{"key": []}]
    return document


def describe() -> str:
    """Describe the service for a person."""
    from stages.tools.serving.requests import FORMS, QuestionRow

    fields = "\n".join(f"  {name:<13} {field.description}" for name, field in QuestionRow.model_fields.items())
    return (
        f'POST /invocations, {MEDIA_TYPE}: {{"dataframe_records": [row, ...]}}, 1 to {MAX_ROWS} rows.\n\nA'
        f" row:\n{fields}\n\n"
        'Comes back: {"predictions": [{"thinking": ..., "answer": ..., "reply": ...}, ...]}; thinking and answer are'
        " null where the\n"
        "reply is not one block of each, and `warnings` is there if the video is interlaced or HDR.\n"
        "What is refused: a status, and a sentence in `message`.\n\n"
        f"Rows may also come as {', '.join(FORMS[1:])}, as MLflow's clients send them. For programs: /openapi.json\n"
    )
