"""Readers: each turns one form of data on disk into columns."""
