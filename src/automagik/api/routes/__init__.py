"""The routes under `/api/v1` and those of the machine room, one module for each resource."""
