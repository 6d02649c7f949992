"""Money: what may be spent, what is reserved, what was used."""

__all__: list[str] = []
