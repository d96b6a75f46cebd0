"""Bytes on disk: safetensors, JSON, the reader of weights; regular files only, with limits."""
