"""How Sphinx makes the pages: `make docs`."""

from importlib import import_module

import subinterp

# Before Sphinx asks for it: if nobody has imported it, Sphinx executes the stub in its place.
import_module("subinterp._core")

project = "subinterp"
author = "The subinterp authors"
project_copyright = author
version = release = subinterp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_*"]

# What stands in single backticks in docstrings is a name, and a link where there is such a page.
default_role = "py:obj"
# Names as users write them, `InterpreterPool.submit`; one parameter a line where one is not enough.
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
numpydoc_show_class_members = False
# Types are prose: "callable", "bytes-like, optional".
numpydoc_xref_param_type = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"subinterp {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
