"""Sphinx configuration: Markdown pages through myst, the furo theme."""

project = "promptris"
author = "The promptris developers"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "promptris"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
