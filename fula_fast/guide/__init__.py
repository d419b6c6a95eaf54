"""The guide: pages in Markdown, and the parts of them that are written from the package itself.

`pages`: written by hand; a line `<!-- here: NAME -->` stands for a part. `parts`: what such a line
becomes. `make`: the pages with their parts, and the site that mkdocs-material makes of them.
"""
