"""Streaming: a queue of rows in slots that are refilled when rows exit."""
