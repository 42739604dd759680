"""How Sphinx builds the documentation site: `sphinx-build -W docs build/site`.

Pages are Markdown (MyST), and read well without the site. Notebooks run while the site is built.
"""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "fxfault"
author = "The fxfault developers"
copyright = author
version = release = version_of("fxfault")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.programoutput",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"fxfault {version}"
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "remove"  # Progress bars, which a page would show line below line.

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autoclass_content = "both"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_exclude = ".linenos, .gp, .go"
