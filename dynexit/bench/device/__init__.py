"""Sections of the device suite."""
