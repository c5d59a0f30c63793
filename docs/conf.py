"""How Sphinx builds the documentation: `make docs` writes it to build/docs/html."""

from gpudrop import __version__

project = "gpudrop"
copyright = "the gpudrop developers"  # noqa: A001
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
default_role = "autolink"  # `name` in a docstring is a link if there is such a name

# The lists of the API pages are the modules' own __all__; see _templates/autosummary/module.rst.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_inherit_docstrings = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = "gpudrop"
html_static_path = ["_static"]
html_css_files = ["gpudrop.css"]
html_show_sourcelink = False
html_sidebars = {"*": []}  # pages without subpages
html_theme_options = {
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
