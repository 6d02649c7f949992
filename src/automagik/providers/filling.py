"""Values that fit a JSON Schema, taken from a person's sentence by simple rules; for the demo model."""

import re
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["Filler", "words"]

_MAX_DEPTH = 8
_MAX_TEXT = 2000
_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "demo@example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "binary": "",
}

Schema = Mapping[str, Any]


def words(text: str) -> list[str]:
    """The words of `text` in lower case and in the singular."""
    return [_singular(word) for word in re.findall(r"[^\W\d_]+", text.lower())]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class Filler:
    """Fills schemas from `prompt`: what is quoted first, then numbers, then the rest. `otherwise` where nothing is left."""

    def __init__(self, prompt: str, otherwise: str) -> None:
        self._prompt = " ".join(prompt.split())[:_MAX_TEXT]
        self._otherwise = otherwise
        self._quoted = [match[1] for match in re.finditer(r"[\"“'‘]([^\"“”‘’']+)[\"”'’](?!\w)", self._prompt)]
        self._numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)", self._prompt)
        self._texts: list[str] = []

    def arguments(self, schema: Schema, *, after: str = "") -> dict[str, Any]:
        """An object that fits `schema`, with its required properties only. The text is what follows the word `after`."""
        required: list[str] = schema.get("required", [])
        properties: Mapping[str, Schema] = schema.get("properties", {})
        texts = [name for name in required if properties.get(name, {}).get("type") == "string"]
        self._texts = self._split(_following(self._prompt, after), len(texts))
        value = self._value(schema, schema.get("$defs", {}), 0)
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    def _split(self, text: str, count: int) -> list[str]:
        """`text` for `count` strings: a name and what it is, where two are wanted and it says so."""
        stated = re.fullmatch(r"(?:that )?(.+?)(?: is | are |\s*[=:]\s*)(.+)", text, re.IGNORECASE)
        if count > 1 and stated is not None:
            return [stated[1], stated[2].rstrip(".")]
        return [text] if text else []

    def _value(self, schema: Schema, defs: Mapping[str, Schema], depth: int) -> Any:
        if depth > _MAX_DEPTH:
            return None
        if "$ref" in schema:
            return self._value(defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {}), defs, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._one_of(schema["enum"])
        for key in ("anyOf", "oneOf", "allOf"):
            options: list[Schema] = schema.get(key, [])
            if options:
                real = [option for option in options if option.get("type") != "null"]
                return self._value(real[0], defs, depth + 1) if real else None
        return self._typed(schema, defs, depth)

    def _typed(self, schema: Schema, defs: Mapping[str, Schema], depth: int) -> Any:
        match schema.get("type"):
            case "string":
                return self._string(schema)
            case "integer":
                return int(self._number(schema))
            case "number":
                return self._number(schema)
            case "boolean":
                return not {"no", "not", "off", "false", "never"} & set(words(self._prompt))
            case "array":
                item: Schema = schema.get("items", {})
                count = max(int(schema.get("minItems", 0)), min(1, int(schema.get("maxItems", 1))))
                return [self._value(item, defs, depth + 1) for _ in range(min(count, 100))]
            case "null":
                return None
            case None if "properties" not in schema:
                return self._string(schema)
            case _:
                properties: Mapping[str, Schema] = schema.get("properties", {})
                required: list[str] = schema.get("required", [])
                return {name: self._value(properties.get(name, {}), defs, depth + 1) for name in required}

    def _one_of(self, choices: list[Any]) -> Any:
        said = set(words(self._prompt))
        return next((choice for choice in choices if set(words(str(choice))) & said), choices[0] if choices else None)

    def _string(self, schema: Schema) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        if self._quoted:
            text = self._quoted.pop(0)
        elif self._texts:
            text = self._texts.pop(0)
        else:
            text = self._otherwise
        text = text[: int(schema.get("maxLength", _MAX_TEXT))]
        return text.ljust(min(int(schema.get("minLength", 0)), _MAX_TEXT), ".")

    def _number(self, schema: Schema) -> float:
        low, high = _bounds(schema)
        number = float(self._numbers.pop(0)) if self._numbers else max(low, min(high, 1.0))
        number = max(low, min(high, number))
        step = schema.get("multipleOf")
        if step:
            number -= number % float(step)
        return int(number) if number == int(number) else number


def _bounds(schema: Schema) -> tuple[float, float]:
    whole = schema.get("type") == "integer"
    edge = 1 if whole else 1e-6
    low = max(
        float(schema.get("minimum", -1e15)),
        float(schema["exclusiveMinimum"]) + edge if "exclusiveMinimum" in schema else -1e15,
    )
    high = min(
        float(schema.get("maximum", 1e15)),
        float(schema["exclusiveMaximum"]) - edge if "exclusiveMaximum" in schema else 1e15,
    )
    return low, high


def _following(prompt: str, word: str) -> str:
    """What stands in `prompt` after `word` (in any number); all of it where nothing does."""
    if word:
        for match in re.finditer(r"[^\W\d_]+", prompt):
            if _singular(match[0].lower()) == word:
                rest = prompt[match.end() :].strip(" ,.:;?!")
                if rest:
                    return rest
    return prompt
