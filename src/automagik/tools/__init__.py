"""What agents can do besides talking: tools, the registry that finds them, and the context they get."""

from automagik.tools.context import AgentContext, AgentMemory
from automagik.tools.registry import ToolCategory, ToolInfo, ToolRegistry, is_read_only

__all__ = ["AgentContext", "AgentMemory", "ToolCategory", "ToolInfo", "ToolRegistry", "is_read_only"]
