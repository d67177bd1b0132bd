"""Streaming: a queue longer than the slots, refilled as rows exit."""
