"""Shipped doubles: what the platform's own tests use, for yours too."""

# Nothing is imported here: `python -m automagik.testing.scripted_openai` would load that module twice.
