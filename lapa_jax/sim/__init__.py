"""Closed-loop environments, their scripted experts, and adapters to others. Each simulator says what it needs."""
