"""How an agent that was found in code stands in the agents table."""

from automagik.agents.sources import Candidate
from automagik.store import Transaction
from automagik.store.rows import AgentRow

__all__ = ["differs", "register"]


def differs(candidate: Candidate, row: AgentRow | None) -> bool:
    """Whether the agent's row is not there, or says other than its code."""
    agent = candidate.agent
    if row is None:
        return True
    said = (agent.agent_type, candidate.source, agent.config.to_json(), agent.config.description)
    return said != (row.type, row.source, row.config, row.description)


def register(tx: Transaction, candidate: Candidate) -> AgentRow:
    """The agent's row as its code says it is now. Whether it is active is for people to say."""
    agent = candidate.agent
    config = agent.config.to_json()
    if tx.agents.find(agent.name) is None:
        return tx.agents.create(
            agent.name,
            type=agent.agent_type,
            source=candidate.source,
            config=config,
            description=agent.config.description,
        )
    return tx.agents.update(
        agent.name,
        type=agent.agent_type,
        source=candidate.source,
        config=config,
        description=agent.config.description,
    )
