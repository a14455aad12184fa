"""JSON schemas as strictly as a test wants them."""


def closed(schema):
    """The schema with no room for keys that it does not describe."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(item) for key, item in schema.items()}
    return inner | {"additionalProperties": False} if "properties" in inner and "required" in inner else inner
