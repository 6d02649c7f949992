"""What both sides are asked, and with what prompt and how much history: one place, so that it is the same."""

from typing import Final

__all__ = [
    "AGENT_VARIABLE",
    "FILLED_PROMPT",
    "HISTORY_MESSAGES",
    "PLAIN_MODEL",
    "PROMPT",
    "QUESTION",
    "VARIABLE_VALUE",
    "WARM_MODEL",
]

QUESTION: Final = "Tell me in one sentence what you would do with a free afternoon in Lisbon."
AGENT_VARIABLE: Final = "preference"
VARIABLE_VALUE: Final = "short answers, plain words, no exclamation marks"
PROMPT: Final = "You are a travel companion of few words. The traveller prefers {{preference}}. Never invent prices."
FILLED_PROMPT: Final = PROMPT.replace("{{preference}}", VARIABLE_VALUE)
HISTORY_MESSAGES: Final = 20
"""Messages that the model sees before the question, ten turns: the platform's default `message_limit`."""
PLAIN_MODEL: Final = "scripted"
"""The scripted provider answers it with a short sentence, at once."""
WARM_MODEL: Final = "bulk-8"
"""Eight tokens at once."""
