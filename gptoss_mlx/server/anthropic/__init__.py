"""Anthropic's API: messages, token counts and models."""
