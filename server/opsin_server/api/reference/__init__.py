"""The API described: a table of its operations, the OpenAPI document and docs/api.md, both made of the table and of the
models that check requests."""
