"""Claude workflows: the Claude CLI at work on a repository in a sandbox."""

from automagik.claude_code.work import ExecutorName, RepositorySource, Work

__all__ = ["ExecutorName", "RepositorySource", "Work"]
