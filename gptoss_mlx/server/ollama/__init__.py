"""Ollama's API: chat, generate and the catalogue of models, in lines of JSON."""
