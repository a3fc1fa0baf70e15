"""Fetching data sets: download, verify, unpack."""
