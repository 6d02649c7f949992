"""The model gateway: a run's one way to a model, which puts the key in, meters and enforces the budget."""

__all__: list[str] = []
