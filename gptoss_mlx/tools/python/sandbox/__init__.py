"""Walls around a model's code: a module for each platform and for each part of Linux's."""
