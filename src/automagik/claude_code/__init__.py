"""Claude workflows: the Claude CLI at work on a repository in a sandbox."""

__all__: list[str] = []
