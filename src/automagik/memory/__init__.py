"""What an agent knows beyond the question: the conversation so far, memory variables, and its prompt."""

from automagik.memory.archive import MessageArchive
from automagik.memory.door import AgentMemory
from automagik.memory.history import MessageHistory, dump_messages, load_messages
from automagik.memory.prompts import BUILTIN_VARIABLES, DEFAULT_STATUS_KEY, Prompts
from automagik.memory.templates import PromptTemplate, is_name
from automagik.memory.text import check_text, clean_text, to_clean_json
from automagik.memory.variables import MemoryChanges, MemoryInput, MemoryStore
from automagik.memory.writing import write_again

__all__ = [
    "BUILTIN_VARIABLES",
    "DEFAULT_STATUS_KEY",
    "AgentMemory",
    "MemoryChanges",
    "MemoryInput",
    "MemoryStore",
    "MessageArchive",
    "MessageHistory",
    "PromptTemplate",
    "Prompts",
    "check_text",
    "clean_text",
    "dump_messages",
    "is_name",
    "load_messages",
    "to_clean_json",
    "write_again",
]
