"""Sphinx configuration: Markdown pages through myst, docstrings through autodoc, the furo theme."""

project = "promptris"
author = "The promptris developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "promptris"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_copyright = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
# Shapes stand in the docstrings; jaxtyping's annotations are no types that a reader could look up.
autodoc_typehints = "none"
default_role = "code"
smartquotes_action = "D"  # dashes; quotes stay as they are in code
napoleon_numpy_docstring = False
napoleon_use_rtype = False
