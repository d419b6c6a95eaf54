"""The guide: pages in Markdown, and the parts of them that are written from the package itself.

`pages`: written by hand; a line `<!-- here: NAME -->` stands for a part, `<!-- figure: NAME -->`
for what the block of code below it draws. `parts`: what the first becomes; `gallery`: what the
second becomes, of the small tables that `recorded` reads. `make`: the pages with both, and the site
that mkdocs-material makes of them.
"""
