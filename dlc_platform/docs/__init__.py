"""The documentation: its pages as Markdown, the reference that is made of the code, and how the site is built of both.

`mkdocs.yml` describes the site. A wheel holds it, built, in the folder `site` beside this file.
"""
