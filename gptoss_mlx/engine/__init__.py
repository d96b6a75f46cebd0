"""Conversations on a model: requests, streams of events, and what they leave."""
