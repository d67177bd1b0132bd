"""Profiles, and what an update costs on the device."""
